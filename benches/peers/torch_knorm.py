#!/usr/bin/env python3
"""PyTorch peer of keynorm: the same KV-cache compression, timed on the same card.

From keys and values of shape [1, rows, n, d], keep per row the k = ceil(keep * n)
tokens whose key has the lowest L2 norm (arXiv 2406.11430). All norms are float32.
Every variant works out of place, as PyTorch does: the kept tokens go to new tensors.

Variants (all but `literal` return them as [rows * k, d])
  literal  the operations of NVIDIA kvpress in its order: scores = -norm, topk (sorted
           by score), expand, gather(...).contiguous(). kvpress itself takes the norm
           in the keys' dtype.
  tuned    norm, topk(largest=False, sorted=False), one index_select over the flattened
           [rows * n, d] tensor (by its source, PyTorch's vectorized gather kernel takes
           this two-dimensional form, but not the three-dimensional gather of literal).
  ordered  tuned, with the indices sorted so that tokens keep their order.
  keydiff  score = cosine of each key with the mean of the normalised keys (arXiv
           2504.15364), lowest kept, then as tuned. The two reductions are batched
           matrix products in the keys' dtype with float32 sums, so that no float32
           copy of the keys is made.
  decode   (--decode) one decode step over 32 layers x 8 rows x 4096 tokens, keep 0.98,
           norms already cached per layer: per layer topk on the norms, then index_select
           of K, V and the norms. `decode-values` takes the kept norms from topk's
           values instead of a third index_select. The fastest row has "best": true.

Modes: `eager`, and `graph`, the same calls captured in a CUDA graph (CUDA only).

Timing, in microseconds, L2 cold and clean: a scratch is written and read before every repetition.
  us_*            CUDA events, the scratch still being read when the call is issued,
                  so launch latency that fits behind it is not counted: this favours
                  PyTorch, eager mode above all.
  wall_us_median  host clock from an idle device to a synchronized one, launches counted.
On a CPU both are the host clock. gb_s = bytes_floor / us_median, where bytes_floor counts
the least traffic: n key rows read once, k key and value rows read and written. (decode:
the norms read once, k key and value rows read and written, k norms written.)

Sources
  https://arxiv.org/abs/2406.11430                 key norms
  https://arxiv.org/abs/2504.15364                 KeyDiff
  https://github.com/NVIDIA/kvpress                presses/scorer_press.py, knorm_press.py

Usage
  python3 torch_knorm.py --shapes 8x1024,8x4096,1x8x32768 --output torch.json
  python3 torch_knorm.py --decode --shapes ""      only the decode step
  python3 torch_knorm.py --only-copy               only the card's copy and read rates

Exit status: 0, 1 if a result was wrong, 2 on bad arguments. A failed measurement (out of
memory, capture) leaves its reason in the row's "error".
"""

import argparse
import contextlib
import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import time

import torch

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
# How far above the k-th lowest cosine a kept one may lie: the keys' rounding.
COSINE_SLACK = {"f16": 5e-4, "bf16": 4e-3, "f32": 1e-5}
SEED = 20240611
MIB = 1 << 20
STATS = ("us_median", "us_min", "us_max", "us_p10", "us_p90", "wall_us_median")


class WrongResult(Exception):
    """A variant kept or copied the wrong tokens."""


# ---------------------------------------------------------------- the variants
# Each returns (kept keys, kept values, indices). `offsets` is arange(rows) * n as a
# [rows, 1] column, made once outside the timed region.


def norms(keys):
    """L2 norms in float32; on CUDA the conversion is fused into the reduction."""
    return torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)


def take(keys, values, idx, offsets):
    """Copies the tokens `idx` of every row with one flat index_select each."""
    d = keys.shape[-1]
    flat = idx.view(offsets.shape[0], -1).add_(offsets).view(-1)
    return keys.view(-1, d).index_select(0, flat), values.view(-1, d).index_select(0, flat), flat


def literal(keys, values, k, offsets):
    scores = -norms(keys)
    idx = scores.topk(k, dim=-1).indices
    wide = idx.unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
    return keys.gather(2, wide).contiguous(), values.gather(2, wide).contiguous(), idx


def tuned(keys, values, k, offsets):
    idx = norms(keys).topk(k, dim=-1, largest=False, sorted=False).indices
    return take(keys, values, idx, offsets)


def ordered(keys, values, k, offsets):
    idx = norms(keys).topk(k, dim=-1, largest=False, sorted=False).indices
    if k > 4096:  # above this PyTorch sorts by radix: 32-bit keys halve its passes
        idx = idx.int()
    return take(keys, values, idx.sort(dim=-1).values, offsets)


def bmm32(a, b):
    """Batched product with a float32 result (half inputs: only CUDA has out_dtype)."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a, b).float()


def keydiff(keys, values, k, offsets):
    rows = keys.squeeze(0)
    inverse = norms(rows).reciprocal_()  # random keys: none is zero
    # The anchor's length does not change the ranking: normalise the sum, skip the mean.
    anchor = bmm32(inverse.to(keys.dtype).unsqueeze(1), rows)
    anchor = torch.nn.functional.normalize(anchor, dim=-1).to(keys.dtype)
    cosine = bmm32(rows, anchor.transpose(1, 2)).squeeze(-1).mul_(inverse)
    idx = cosine.topk(k, dim=-1, largest=False, sorted=False).indices
    return take(keys, values, idx, offsets)


VARIANTS = {"literal": literal, "tuned": tuned, "ordered": ordered, "keydiff": keydiff}


def decode_step(layers, k, offsets, from_values):
    """One step over all layers; each layer is (keys, values, cached norms)."""
    result = []
    for keys, values, cached in layers:
        top = cached.topk(k, dim=-1, largest=False, sorted=False)
        kept_keys, kept_values, flat = take(keys, values, top.indices, offsets)
        kept_norms = top.values if from_values else cached.view(-1).index_select(0, flat)
        result.append((kept_keys, kept_values, flat, kept_norms))
    return result


# ------------------------------------------------------------------ correctness


def reference(keys, cosine):
    """Double-precision norms, or KeyDiff cosines, as [rows, n]; a few rows at a time."""
    _, rows, n, d = keys.shape
    step = max(1, (128 * MIB) // (n * d))
    parts = []
    for chunk in keys[0].split(step):
        chunk = chunk.double()
        norm = torch.linalg.vector_norm(chunk, dim=-1)
        if cosine:
            chunk = chunk / norm.unsqueeze(-1)
            mean = torch.nn.functional.normalize(chunk.mean(dim=1), dim=-1)
            norm = torch.bmm(chunk, mean.unsqueeze(-1)).squeeze(-1)
        parts.append(norm)
    return torch.cat(parts)


def check(out, keys, values, k, scores, limit, in_order=False):
    """k distinct tokens a row, none scoring above `limit`, copied exactly."""
    rows, n = scores.shape
    d = keys.shape[-1]
    if out[2].numel() != rows * k:
        raise WrongResult(f"kept {out[2].numel()} tokens, not {rows * k}")
    idx = out[2].long().view(rows, k) % n
    ascending = idx if in_order else idx.sort(dim=-1).values
    if (ascending[:, 1:] <= ascending[:, :-1]).any():
        raise WrongResult("kept indices out of order" if in_order else "a token kept twice")
    if (scores.gather(1, idx) > limit).any():
        raise WrongResult("a kept score lies above the k-th lowest one")
    flat = (idx + torch.arange(rows, device=idx.device).unsqueeze(1) * n).view(-1)
    for got, source in ((out[0], keys), (out[1], values)):
        if not torch.equal(got.view(rows * k, d), source.view(-1, d)[flat]):
            raise WrongResult("copied rows differ from the indexed ones")


# ----------------------------------------------------------------------- timing


class Timer:
    def __init__(self, device, repetitions, warmup):
        self.cuda = device.type == "cuda"
        self.repetitions, self.warmup = repetitions, warmup
        # Far above any L2, and on a GPU long enough to write to hide launches behind.
        size = 512 * MIB if self.cuda else 256 * MIB
        self.scratch = torch.empty(size // 4, dtype=torch.float32, device=device)
        self.total = torch.empty((), dtype=torch.float32, device=device)

    def sync(self):
        if self.cuda:
            torch.cuda.synchronize()

    def empty_cache(self):
        """Writes the scratch, then reads it, so that what the L2 holds is clean: the timed call pays for its own bytes only."""
        self.scratch.fill_(1.0)
        torch.sum(self.scratch, dim=0, out=self.total)

    def wall(self, run, flush):
        if flush:
            self.empty_cache()
        self.sync()
        start = time.perf_counter()
        run()
        self.sync()
        return (time.perf_counter() - start) * 1e6

    def event(self, run, flush, begin, end):
        if flush:
            self.empty_cache()  # not synchronized: launches hide behind it
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3

    def measure(self, run, flush=True):
        """The STATS of `run`. Inputs are never modified, so nothing is restored."""
        for _ in range(self.warmup):
            self.wall(run, flush)
        walls = [self.wall(run, flush) for _ in range(self.repetitions)]
        times = walls
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            times = [self.event(run, flush, begin, end) for _ in range(self.repetitions)]
        times = sorted(times)
        figures = (statistics.median(times), times[0], times[-1],
                   percentile(times, 0.1), percentile(times, 0.9), statistics.median(walls))
        return {name: round(value, 3) for name, value in zip(STATS, figures)}


def percentile(ascending, share):
    """Linear interpolation between the closest ranks."""
    at = share * (len(ascending) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (at - low)


def capture(fn):
    """Captures `fn` in a CUDA graph; returns (graph, the tensors it writes)."""
    stream = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        for _ in range(3):
            fn()
    stream.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = fn()
    finally:  # a failed capture would leave its own stream current
        torch.cuda.set_stream(stream)
    return graph, out


def free():
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # after a failed kernel: rows tell it
            torch.cuda.empty_cache()


def log(text):
    print(text, file=sys.stderr, flush=True)


def short(error):
    """The first line of an error, with its kind."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def measure_row(row, fn, verify, timer):
    """Fills `row` from `fn`: verified first, then timed; a failure goes in its error."""
    try:
        if row["mode"] == "graph":
            graph, out = capture(fn)
            graph.replay()
            verify(out)
            row.update(timer.measure(graph.replay))
        else:
            verify(fn())
            row.update(timer.measure(fn))
        row["gb_s"] = round(row["bytes_floor"] / row["us_median"] / 1e3, 3)
    except (WrongResult, RuntimeError, MemoryError, TypeError) as error:
        row["error"] = short(error)
        log(f"  {row['peer']} {row['mode']}: {row['error']}")


# -------------------------------------------------------------------- the cases


def new_row(args, peer, mode, rows, n, keep):
    k = math.ceil(keep * n)
    row_bytes = args.head_dim * DTYPES[args.dtype].itemsize
    return {"peer": f"torch-{peer}", "mode": mode, "batch_rows": rows, "seq_len": n,
            "head_dim": args.head_dim, "dtype": args.dtype, "keep_ratio": keep, "kept": k,
            **dict.fromkeys(STATS), "bytes_floor": (n + 4 * k) * row_bytes * rows,
            "gb_s": None, "error": None}


def random_kv(args, device, rows, n, count=1):
    """`count` pairs of random normal keys and values, the same for every run."""
    generator = torch.Generator(device=device).manual_seed(SEED)

    def make():
        return torch.randn(1, rows, n, args.head_dim, generator=generator,
                           device=device, dtype=DTYPES[args.dtype])

    return [(make(), make()) for _ in range(count)]


def row_offsets(device, rows, n):
    return (torch.arange(rows, device=device) * n).unsqueeze(1)


def run_shape(args, device, timer, rows, n):
    """All variants, modes and keep ratios of one shape."""
    log(f"shape {rows} x {n} x {args.head_dim} {args.dtype}")
    plan = [new_row(args, peer, mode, rows, n, keep)
            for keep in args.keep for peer in args.variants for mode in args.modes]
    try:
        (keys, values), = random_kv(args, device, rows, n)
        offsets = row_offsets(device, rows, n)
        scores = {}
        for cosine in {peer == "keydiff" for peer in args.variants}:
            ref = reference(keys, cosine)
            scores[cosine] = (ref, ref.sort(dim=-1).values)
    except (RuntimeError, MemoryError) as error:
        for row in plan:
            row["error"] = short(error)
        log(f"  skipped: {short(error)}")
        return plan
    for row in plan:
        peer, k = row["peer"].removeprefix("torch-"), row["kept"]
        cosine = peer == "keydiff"
        ref, ascending = scores[cosine]
        limit = ascending[:, k - 1 : k]  # ties at the k-th lowest score are free
        limit = limit + COSINE_SLACK[args.dtype] if cosine else limit * (1 + 1e-5)
        measure_row(row, lambda: VARIANTS[peer](keys, values, k, offsets),
                    lambda out: check(out, keys, values, k, ref, limit, peer == "ordered"),
                    timer)
        free()
    return plan


def run_decode(args, device, timer):
    """The decode step, with and without the third index_select."""
    count, rows, n = args.decode_shape
    log(f"decode step: {count} layers x {rows} x {n} x {args.head_dim} {args.dtype}")
    plan = []
    for peer in ("decode", "decode-values"):
        for mode in args.modes:
            row = new_row(args, peer, mode, rows, n, args.decode_keep)
            k = row["kept"]
            row_bytes = args.head_dim * DTYPES[args.dtype].itemsize
            row["bytes_floor"] = count * rows * (4 * k * row_bytes + 4 * n + 4 * k)
            row.update(layers=count, best=False)
            plan.append(row)
    try:
        layers = [(keys, values, norms(keys.squeeze(0)))
                  for keys, values in random_kv(args, device, rows, n, count)]
        offsets = row_offsets(device, rows, n)
    except (RuntimeError, MemoryError) as error:
        for row in plan:
            row["error"] = short(error)
        log(f"  skipped: {short(error)}")
        return plan

    def verify(out):
        for (keys, values, cached), kept in zip(layers, out, strict=True):
            check(kept, keys, values, k, cached, cached.sort(dim=-1).values[:, k - 1 : k])
            if not torch.equal(kept[3].view(-1), cached.view(-1)[kept[2]]):
                raise WrongResult("kept norms differ from the indexed ones")

    for row in plan:
        from_values = row["peer"] == "torch-decode-values"
        measure_row(row, lambda: decode_step(layers, k, offsets, from_values), verify, timer)
        free()
    timed = [row for row in plan if row["error"] is None]
    if timed:
        min(timed, key=lambda row: row["us_median"])["best"] = True
    return plan


def copy_rates(device, timer):
    """(copy GB/s counting bytes read + written, read GB/s, tensor bytes): medians."""
    size = 1024 * MIB if timer.cuda else 256 * MIB
    while True:
        try:
            source = torch.ones(size // 4, device=device)
            target = torch.empty_like(source)
            break
        except (RuntimeError, MemoryError):
            source = None
            free()
            size //= 2
            if size < 16 * MIB:
                raise

    def rate(run, moved):
        return round(moved / timer.measure(run, flush=False)["us_median"] / 1e3, 3)

    copied = rate(lambda: target.copy_(source), 2 * size)
    # A full reduction and one norm per 512-byte row: the faster is the read rate.
    read = max(rate(source.sum, size), rate(lambda: norms(source.view(-1, 128)), size))
    return copied, read, size


# -------------------------------------------------------------- report and command


def describe(device):
    """Name of the device and version of its driver (None where there is none)."""
    if device.type == "cuda":
        try:
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            text = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
            driver = text.split("\n")[0].strip() or None
        except (OSError, subprocess.SubprocessError):
            driver = None
        return torch.cuda.get_device_name(device), driver
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            name = next((line.split(":", 1)[1].strip() for line in info
                         if line.startswith("model name")), name)
    except OSError:
        pass
    return name, None


def print_table(report):
    print(f"torch {report['torch']}, CUDA {report['cuda']}, {report['device']}, driver "
          f"{report['driver']}; copy {report['copy_gb_s']} GB/s, read {report['read_gb_s']} GB/s")
    if not report["rows"]:
        return
    head = "{:<20}{:<6}{:>6}{:>8}{:>5}{:>6}{:>6}{:>8}{:>12}{:>12}{:>12}{:>12}{:>9}"
    print(head.format("peer", "mode", "rows", "n", "d", "dtype", "keep", "kept",
                      "us median", "p10", "p90", "wall us", "GB/s"))
    line = head[: head.index("{:>12}")]
    for row in report["rows"]:
        cells = line.format(row["peer"], row["mode"], row["batch_rows"], row["seq_len"],
                            row["head_dim"], row["dtype"], row["keep_ratio"], row["kept"])
        if row["error"]:
            print(f"{cells}  {row['error']}")
            continue
        figures = [row[name] for name in ("us_median", "us_p10", "us_p90", "wall_us_median")]
        print(cells + "".join(f"{value:>12.1f}" for value in figures) + f"{row['gb_s']:>9.1f}"
              + ("  best" if row.get("best") else ""))


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def names(known):
    """An argparse type: a comma list of names out of `known`."""
    def parse(text):
        chosen = list(dict.fromkeys(part.strip() for part in text.split(",")))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return chosen
    return parse


def sizes(text):
    """'8x4096' -> [8, 4096]."""
    try:
        parts = [int(part) for part in text.lower().split("x")]
    except ValueError:
        parts = [0]
    if min(parts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not positive numbers joined by x")
    return parts


def shapes(text):
    """'8x1024,2x4x4096' -> [(8, 1024), (8, 4096)]; '' -> []."""
    result = []
    for part in text.split(",") if text.strip() else []:
        numbers = sizes(part.strip())
        if len(numbers) not in (2, 3):
            raise argparse.ArgumentTypeError(f"{part!r} is neither ROWSxN nor BxHxN")
        result.append((math.prod(numbers[:-1]), numbers[-1]))
    return result


def layers_shape(text):
    numbers = sizes(text)
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYERSxROWSxN")
    return tuple(numbers)


def ratio(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value


def ratios(text):
    return [ratio(part.strip()) for part in text.split(",")]


def at_least(low):
    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return value
    return parse


def parse_args():
    parser = Parser(prog="torch_knorm.py", description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", type=shapes, default="8x1024,8x4096",
                        help="comma list of ROWSxN or BxHxN; '' for none (%(default)s)")
    parser.add_argument("--head-dim", type=at_least(1), default=128)
    parser.add_argument("--dtype", choices=list(DTYPES), default="f16")
    parser.add_argument("--keep", type=ratios, default="0.1,0.5,0.9",
                        help="comma list of kept shares (%(default)s)")
    parser.add_argument("--repetitions", type=at_least(1), default=20)
    parser.add_argument("--warmup", type=at_least(0), default=3)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there")
    parser.add_argument("--threads", type=at_least(1), help="PyTorch's CPU threads")
    parser.add_argument("--output", metavar="FILE.json")
    parser.add_argument("--variants", type=names(list(VARIANTS)), default=",".join(VARIANTS),
                        help="comma list (%(default)s)")
    parser.add_argument("--modes", type=names(["eager", "graph"]), default="eager,graph",
                        help="comma list; graph is left out on a CPU (%(default)s)")
    parser.add_argument("--decode", action="store_true", help="add the decode step")
    parser.add_argument("--decode-shape", type=layers_shape, default="32x8x4096",
                        help="LAYERSxROWSxN (%(default)s)")
    parser.add_argument("--decode-keep", type=ratio, default="0.98")
    parser.add_argument("--only-copy", action="store_true", help="only copy and read rates")
    args = parser.parse_args()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: this PyTorch finds no CUDA device")
    if args.output:
        try:
            open(args.output, "a", encoding="utf-8").close()
        except OSError as error:
            parser.error(f"argument --output: {error}")
    if args.device == "cpu" and "graph" in args.modes:
        args.modes.remove("graph")
        if not args.modes:
            parser.error("argument --modes: graph needs a CUDA device")
        log("graph mode left out: it needs a CUDA device")
    return args


def main():
    args = parse_args()
    torch.set_grad_enabled(False)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    timer = Timer(device, args.repetitions, args.warmup)
    name, driver = describe(device)
    report = {"tool": "torch_knorm", "torch": torch.__version__, "cuda": torch.version.cuda,
              "device": name, "device_type": device.type, "driver": driver, "threads": torch.get_num_threads(),
              "repetitions": args.repetitions, "warmup": args.warmup}

    def save():
        if args.output:
            with open(args.output, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=1)
                file.write("\n")

    log("copy and read rates")
    report["copy_gb_s"], report["read_gb_s"], report["copy_bytes"] = copy_rates(device, timer)
    report["rows"] = []
    free()
    save()
    if not args.only_copy:
        for rows, n in args.shapes:
            report["rows"] += run_shape(args, device, timer, rows, n)
            free()
            save()
        if args.decode:
            report["rows"] += run_decode(args, device, timer)
            save()
    print_table(report)
    wrong = any((row["error"] or "").startswith("WrongResult") for row in report["rows"])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
