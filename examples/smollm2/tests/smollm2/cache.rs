//! The cache beside the model: what it holds after a compression, and what it refuses.

use keynorm::{Budget, BudgetOverride, Policy, Pool};
use keynorm_smollm2::cache::KvCache;
use keynorm_smollm2::lab::Lab;

use super::reference::Reference;
use super::{compress, difference, lab, logits, prose};

/// Tokens after a compression stand at the positions that they have in the text, where no layer is as long as that, and see
/// of the text before it what was kept.
#[test]
fn tokens_after_a_compression_of_every_layer_see_what_was_kept() {
    const CONTEXT: usize = 60;
    let mut lab = lab();
    let tokens = prose(&lab)[..CONTEXT + 6].to_vec();
    lab.prefill(&tokens[..CONTEXT]).unwrap();
    compress(&mut lab, &Policy::new(Budget::keep_ratio(0.4)));
    assert_eq!((lab.cache.num_seen(), lab.cache.min_len(), lab.cache.max_len()), (60, 24, 24));
    let Lab { gpu, cache, .. } = &*lab;
    let kept = pollster::block_on(cache.state().read(&gpu.device, &gpu.queue)).unwrap();
    let ours = [logits(&mut lab, &tokens[CONTEXT..=CONTEXT]), logits(&mut lab, &tokens[CONTEXT + 1..])].concat();
    let sees = |layer: usize, head: usize, query: usize, key: usize| {
        query < CONTEXT || key >= CONTEXT || kept.layers[layer].positions[head].contains(&(key as u32))
    };
    let reference = Reference::open().unwrap().logits_seeing(&[tokens], &sees).unwrap();
    let reference = &reference[0][CONTEXT..];
    assert_eq!(ours.len(), reference.len());
    let largest = ours.iter().zip(reference).map(|(a, b)| difference(a, b)).fold(0.0, f32::max);
    println!("largest difference of a logit {largest:e}");
    assert!(largest < 1e-3, "{largest}");
}

#[test]
fn policies_that_the_host_cannot_follow_are_refused() {
    let lab = lab();
    let plain = || Policy::paper(0.5);
    let fewer = |heads| vec![BudgetOverride { layers: 3..4, heads, budget: Budget::KeepTokens(8) }];
    for (policy, field) in [
        (Policy { pool: Some(Pool { min_tokens: 1 }), ..plain() }, "pool"),
        (Policy { segments: true, ..plain() }, "segments"),
        (Policy { min_len: 64, ..plain() }, "min_len"),
        (Policy::new(Budget::MaxNorm(3.0)), "MaxNorm"),
        (Policy { budgets: fewer(1..2), ..plain() }, "budgets"),
    ] {
        let error = lab.cache.press(&[policy]).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    lab.cache.press(&[Policy { budgets: fewer(0..3), ..plain() }]).unwrap();
}

#[test]
fn a_cache_that_burn_has_moved_is_noticed() {
    let mut lab = lab();
    let tokens = prose(&lab);
    let mut cache = KvCache::new(&lab.gpu, &lab.model.config, 64).unwrap();
    std::mem::swap(&mut cache, &mut lab.cache);
    lab.prefill(&tokens[..16]).unwrap();
    let before = lab.cache.check_places();
    // A second handle: Burn copies the tensor and writes to the copy.
    let held = lab.cache.view(3);
    lab.feed(&tokens[16..18]).unwrap();
    let after = lab.cache.check_places();
    drop(held);
    // The other tests go on with theirs.
    std::mem::swap(&mut cache, &mut lab.cache);
    before.unwrap();
    assert!(after.unwrap_err().to_string().contains("Burn has moved the cache"));
}
