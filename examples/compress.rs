//! Compresses a KV cache in a safetensors file: the main job, on a file. `--help` says how.
//!
//! Layer by layer through the same buffers, so that neither the GPU nor the host needs to hold the whole cache. What goes
//! wrong is one line on stderr and exit code 2; the output appears complete or not at all.

#[path = "compress/adapter.rs"]
mod adapter;
#[path = "compress/cli.rs"]
mod cli;
#[path = "compress/gpu.rs"]
mod gpu;
#[path = "compress/input.rs"]
mod input;
#[path = "compress/output.rs"]
mod output;
#[path = "compress/report.rs"]
mod report;
#[path = "compress/timer.rs"]
mod timer;

use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use safetensors::tensor::{Dtype, TensorInfo};

use cli::{Args, Task};
use gpu::Runner;
use input::{Input, Layer, Positions};
use output::Output;
use report::{Line, say};

/// What went wrong, beginning with the argument or tensor that is at fault.
type Failure = String;

/// Input from which on a progress bar is worth its line.
const LONG_INPUT_BYTES: u64 = 64 << 20;

fn main() -> ExitCode {
    quiet_device_select();
    match Args::try_parse() {
        Ok(args) => run(&args).map_or_else(|failure| fail(&failure), |()| ExitCode::SUCCESS),
        Err(error) if error.use_stderr() => {
            // The first paragraph says it all; the others are hints.
            let text = error.to_string();
            fail(text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: "))
        }
        Err(help) => {
            say(help.to_string().trim_end());
            ExitCode::SUCCESS
        }
    }
}

/// Mesa's layer that asks the desktop for its default GPU prints to stderr where there is no desktop. It is of no use
/// then, and stderr is for what went wrong.
fn quiet_device_select() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread has been started yet.
        #[expect(unsafe_code, reason = "the Vulkan loader reads the process' environment only")]
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
}

fn fail(failure: &str) -> ExitCode {
    let words: Vec<&str> = failure.split_whitespace().collect();
    eprintln!("error: {}", words.join(" "));
    ExitCode::from(2)
}

fn run(args: &Args) -> Result<(), Failure> {
    if args.list_adapters {
        for (number, adapter) in adapter::adapters()?.iter().enumerate() {
            say(&format!("{number}: {}", adapter::describe(&adapter.get_info())));
        }
        return Ok(());
    }
    let task = args.task()?;
    let mut input = Input::open(&args.input)?;
    let layers = std::mem::take(&mut input.layers);
    if let Some(unknown) = args.named_layers().iter().find(|&&named| layers.iter().all(|layer| layer.index != named)) {
        return Err(format!("--skip-layers: the file has no layer {unknown}"));
    }
    let jobs = layers.iter().map(|layer| Job::new(&task, &mut input, layer)).collect::<Result<Vec<_>, _>>()?;
    let mut output = match &args.output {
        Some(path) => Some(Output::create(path, input.metadata.clone(), output_tensors(&jobs, &input))?),
        None => None,
    };
    let adapter = adapter::choose_adapter(args.adapter.as_deref())?;
    say(&format!("adapter: {}", adapter::describe(&adapter.get_info())));
    let mut runner = Runner::new(&adapter, task.policy)?;
    let progress = progress_bar(&layers);
    let mut lines = Vec::new();
    for job in &jobs {
        lines.push(job.run(&mut runner, &mut input, output.as_mut(), &progress)?);
    }
    progress.finish_and_clear();
    if let Some(mut output) = output {
        for (name, info) in std::mem::take(&mut input.others) {
            input.read(&info, |at, bytes| output.write(&name, at, bytes))?;
        }
        // It may be what is replaced, which not every system does to an open file.
        drop(input);
        output.finish()?;
    }
    report::print(&lines);
    Ok(())
}

/// What is to be done with a layer.
struct Job<'a> {
    layer: &'a Layer,
    /// Tokens that each row keeps.
    kept: u32,
    /// Left as it is.
    is_whole: bool,
}

impl<'a> Job<'a> {
    fn new(task: &Task, input: &mut Input, layer: &'a Layer) -> Result<Self, Failure> {
        let is_whole = task.skip_layers.contains(&layer.index) || layer.len() == 0;
        let positions = input.positions(layer)?;
        let kept = if is_whole { layer.len() } else { layer.kept(&task.policy, positions.as_ref())? };
        Ok(Self { layer, kept, is_whole })
    }

    fn run(
        &self,
        runner: &mut Runner,
        input: &mut Input,
        mut output: Option<&mut Output>,
        progress: &ProgressBar,
    ) -> Result<Line, Failure> {
        let Self { layer, kept, .. } = *self;
        progress.set_message(format!("layer {}", layer.index));
        let mut line = Line {
            layer: layer.index,
            tokens: (layer.len(), kept),
            bytes: (layer.bytes(layer.len()), layer.bytes(kept)),
            outcome: None,
        };
        let before = input.positions(layer)?;
        if self.is_whole {
            if let Some(output) = output {
                copy(layer, before.as_ref(), input, output)?;
            }
            progress.inc(line.bytes.0);
            return Ok(line);
        }
        let compressed = runner.compress(input, layer, before.as_ref(), |bytes| progress.inc(bytes))?;
        if compressed.positions.iter().any(|row| row.len() != kept as usize) {
            return Err(format!("layers.{}: a row did not keep {kept} tokens; this is a defect", layer.index));
        }
        if let Some(output) = output.as_mut() {
            for (is_keys, part) in [(true, "keys"), (false, "values")] {
                runner.download(is_keys, kept, |at, bytes| output.write(&layer.name(part), at, bytes))?;
            }
            output.write(&layer.name("positions"), 0, &to_bytes(compressed.positions.iter().flatten()))?;
        }
        line.outcome = Some(compressed.outcome);
        Ok(line)
    }
}

/// A layer that is left whole: its positions count up, unless it brings its own.
fn copy(layer: &Layer, before: Option<&Positions>, input: &mut Input, output: &mut Output) -> Result<(), Failure> {
    for (tensor, part) in [(&layer.keys, "keys"), (&layer.values, "values")] {
        input.read(tensor, |at, bytes| output.write(&layer.name(part), at, bytes))?;
    }
    let counted: Vec<u32> = (0..layer.shape.rows_per_layer()).flat_map(|_| 0..layer.len()).collect();
    let positions = before.map_or(&counted, |b| &b.rows);
    output.write(&layer.name("positions"), 0, &to_bytes(positions.iter()))
}

fn to_bytes<'a>(words: impl Iterator<Item = &'a u32>) -> Vec<u8> {
    words.flat_map(|w| w.to_le_bytes()).collect()
}

fn output_tensors(jobs: &[Job<'_>], input: &Input) -> Vec<(String, TensorInfo)> {
    let mut tensors = input.others.clone();
    for Job { layer, kept, .. } in jobs {
        for (tensor, part) in [(&layer.keys, "keys"), (&layer.values, "values")] {
            let mut info = tensor.clone();
            info.shape[2] = *kept as usize;
            tensors.push((layer.name(part), info));
        }
        let shape = vec![layer.keys.shape[0], layer.keys.shape[1], *kept as usize];
        tensors.push((layer.name("positions"), TensorInfo { dtype: Dtype::U32, shape, data_offsets: (0, 0) }));
    }
    tensors
}

/// A bar on a terminal; where stderr is none, indicatif draws nothing.
fn progress_bar(layers: &[Layer]) -> ProgressBar {
    let total = layers.iter().map(|layer| layer.bytes(layer.len())).sum();
    if total < LONG_INPUT_BYTES {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total).with_finish(ProgressFinish::AndClear);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes} of {total_bytes}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}
