use std::time::Instant;
use keynorm_smollm2::{cache::*, gguf::*, gpu::*, model::*};
use keynorm::Policy;
fn main() -> anyhow::Result<()> {
    let gpu = Gpu::new(None)?;
    println!("{}", gpu.describe());
    let mut gguf = Gguf::open(&default_path())?;
    let tok = gguf.tokenizer()?;
    let t = Instant::now();
    let model = Model::load(&mut gguf, &gpu.burn)?;
    gpu.sync()?;
    println!("loaded {:?}", t.elapsed());
    let mut cache = KvCache::new(&gpu, &model.config, 1600)?;
    let enc = tok.encode("The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is", false).unwrap();
    let ids = enc.get_ids().to_vec();
    println!("{ids:?}");
    let mut next = ids.clone();
    let mut out = vec![];
    for step in 0..24 {
        let t = Instant::now();
        let logits = read(model.forward(&next, 1, &mut cache)?)?;
        let (best, v) = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        println!("{step} {best} {v} {:?}", t.elapsed());
        out.push(best as u32);
        next = vec![best as u32];
        if step == 12 {
            let press = cache.press(&Policy::paper(0.5))?;
            println!("{:?}", cache.compress_timed(&press)?);
            println!("{:?} {}", cache, cache.current_places()? == cache.bound_places());
        }
    }
    println!("{}", tok.decode(&out, false).unwrap());
    cache.clear()?;
    let text: Vec<u32> = (0..512).map(|i| ids[i % ids.len()]).collect();
    for _ in 0..2 {
        let t = Instant::now();
        let logits = read(model.forward(&text, 1, &mut cache)?)?;
        println!("prefill 512 {:?} {}", t.elapsed(), logits[0]);
    }
    let t = Instant::now();
    let logits = read(model.forward(&text[..256], 256, &mut cache)?)?;
    println!("256 with logits {:?} {}", t.elapsed(), logits[0]);
    println!("{} bytes", gpu.allocated_bytes());
    Ok(())
}
