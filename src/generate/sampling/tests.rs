use super::*;
use crate::noise::uniform;
use crate::ops::{both, plainly};

const NONE: std::iter::Empty<u32> = std::iter::empty();

fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&z| f64::from(z / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

#[test]
fn frequencies_follow_the_tempered_softmax() {
    let logits = [0.0f32, 1.0, 2.0, -1.0];
    let draws = 40_000u64;
    for temperature in [0.5f32, 1.0, 2.0] {
        let mut counts = [0f64; 4];
        for i in 0..draws {
            let drawn = sample(&logits, &Distribution::at(temperature), uniform(&[9, i]), NONE);
            counts[drawn.token as usize] += 1.0 / draws as f64;
        }
        for (count, probability) in counts.iter().zip(softmax(&logits, temperature)) {
            // Six standard deviations of a frequency over 40,000 draws.
            assert!((count - probability).abs() < 0.015, "T {temperature}: {counts:?}");
        }
    }
}

/// A token of probability 0.996 before 150,000 of 2.7e-8 each, which an f32 sum that has reached 1 ignores. The drawn
/// token matches the cumulative distribution on the host, with truncation, and on a device.
#[test]
fn a_long_tail_keeps_its_share() {
    let vocab = 150_001usize;
    let (peak, tail) = (0.996f64, 0.004f64 / 150_000.0);
    let mut logits = vec![tail.ln() as f32; vocab];
    logits[0] = peak.ln() as f32;
    let weights: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
    let (peak, tail) = (weights[0], weights[1]);
    let total = peak + 150_000.0 * tail;
    for uniform in [0.5f32, 0.9961, 0.997, 0.998, 0.9999] {
        let expected = ((f64::from(uniform) * total - peak) / tail).max(0.0).ceil();
        let all = Distribution::default();
        let device = Tensor::from_data(TensorData::new(logits.clone(), [1, vocab]), &Device::flex());
        // A device sums 586 blocks in f32, each with an error of 3e-8 of the total.
        for (drawn, tolerance) in [
            (sample(&logits, &all, uniform, NONE), 5e-6),
            (sample(&logits, &Distribution { min_p: 1e-9, ..all }, uniform, NONE), 5e-6),
            (plainly(|| draw(device, &all, &[uniform], &[[&[], &[]]]))[0], 2e-5),
        ] {
            let error = (f64::from(drawn.token) - expected).abs() * tail / total;
            assert!(error < tolerance, "{uniform}: token {} for {expected}", drawn.token);
        }
    }
}

#[test]
fn logits_that_are_not_numbers_give_a_log_probability_that_is_none() {
    for bad in [f32::NAN, f32::INFINITY] {
        let logits = [0.0, bad, 1.0];
        let all = Distribution::default();
        for distribution in [
            all,
            Distribution { top_k: 2, ..all },
            Distribution { top_p: 0.5, ..all },
            Distribution { min_p: 0.1, ..all },
            Distribution::at(0.0),
        ] {
            let drawn = sample(&logits, &distribution, 0.5, NONE);
            assert!(drawn.log_prob.is_nan() && drawn.token < 3, "{bad} {distribution:?}: {drawn:?}");
        }
    }
}

#[test]
fn log_probabilities_and_entropies_are_those_of_the_distributions_they_name() {
    let logits: Vec<f32> = (0..37).map(|i| ((i * 7) % 13) as f32 * 0.3).collect();
    let drawn = sample(&logits, &Distribution { top_k: 5, ..Distribution::at(0.7) }, 0.4, NONE);
    let (token, tempered, unit) = (drawn.token as usize, softmax(&logits, 0.7), softmax(&logits, 1.0));
    let entropy = |p: &[f64]| -p.iter().map(|p| p * p.ln()).sum::<f64>();
    // 13 values over 37 tokens: the two largest values occur two and three times, and are the top five.
    let mut sorted = tempered.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let top: f64 = sorted.iter().take_while(|&&p| p >= sorted[4] - 1e-9).sum();
    for (ours, expected) in [
        (drawn.log_prob, tempered[token].ln()),
        (drawn.drawn_log_prob, (tempered[token] / top).ln()),
        (drawn.unit_log_prob, unit[token].ln()),
        (drawn.entropy, entropy(&unit)),
        (drawn.sampling_entropy, entropy(&tempered)),
        (drawn.collision, tempered.iter().map(|p| p * p).sum()),
        (drawn.collision_log, tempered.iter().map(|p| p * p * p.ln()).sum()),
    ] {
        assert!((f64::from(ours) - expected).abs() < 1e-5, "{ours} against {expected}");
    }
}

#[test]
fn truncation_keeps_what_the_warpers_of_transformers_keep() {
    // Probabilities 0.4, 0.3, 0.15, 0.1, 0.05 in another order.
    let logits: Vec<f32> = [0.15f32, 0.4, 0.05, 0.3, 0.1].iter().map(|p| p.ln()).collect();
    let kept = |distribution: Distribution| -> Vec<usize> {
        truncate(&logits, &distribution).iter().map(|(token, _)| *token).collect()
    };
    let all = Distribution::default();
    assert_eq!(kept(Distribution { top_k: 2, ..all }), [1, 3]);
    assert_eq!(kept(Distribution { top_k: 9, ..all }), [1, 3, 0, 4, 2]);
    // A token stays while those before it have not reached top_p: 0.75 needs three, 0.69 two.
    assert_eq!(kept(Distribution { top_p: 0.75, ..all }), [1, 3, 0]);
    assert_eq!(kept(Distribution { top_p: 0.69, ..all }), [1, 3]);
    assert_eq!(kept(Distribution { top_p: 1e-6, ..all }), [1]);
    // top_p is a share of what top_k left: 0.4 of 0.7 is 0.57.
    assert_eq!(kept(Distribution { top_k: 2, top_p: 0.6, ..all }), [1, 3]);
    assert_eq!(kept(Distribution { top_k: 2, top_p: 0.5, ..all }), [1]);
    assert_eq!(kept(Distribution { min_p: 0.3, ..all }), [1, 3, 0]);
    assert_eq!(kept(Distribution { min_p: 1.0, ..all }), [1]);
}

#[test]
fn the_repetition_penalty_counts_a_token_once_and_works_on_both_signs() {
    let logits = [2.0f32, 1.9, -0.5, -0.6];
    let greedy = Distribution { repetition_penalty: 1.3, ..Distribution::at(0.0) };
    assert_eq!(sample(&logits, &greedy, 0.0, NONE).token, 0);
    assert_eq!(sample(&logits, &greedy, 0.0, [0, 0].into_iter()).token, 1);
    assert_eq!(*penalise(&logits, 2.0, [0, 2, 0, 2].into_iter()), [1.0, 1.9, -1.0, -0.6]);
}

#[test]
fn temperature_zero_is_greedy() {
    assert_eq!(sample(&[0.1, 3.0, 3.0, -2.0], &Distribution::at(0.0), 0.999, NONE).token, 1);
}

#[test]
fn the_draw_on_a_device_is_the_draw_on_the_host() {
    let (rows, vocab) = (50, 301);
    let mut random = crate::noise::Stream::new(&[4]);
    let logits: Vec<f32> = (0..rows * vocab).map(|_| (random.unit() * 6.0) as f32).collect();
    let uniforms: Vec<f32> = (0..rows as u64).map(|row| uniform(&[5, row])).collect();
    let contexts = vec![[&[][..], &[]]; rows];
    for temperature in [0.0, 0.6, 1.0, 1.4] {
        let [host, device] = both(|| {
            let logits = Tensor::from_data(TensorData::new(logits.clone(), [rows, vocab]), &Device::flex());
            draw(logits, &Distribution::at(temperature), &uniforms, &contexts)
        });
        for (host, device) in host.iter().zip(&device) {
            assert_eq!(host.token, device.token);
            let numbers = |s: &SampledToken| {
                let entropies = [s.entropy, s.sampling_entropy, s.collision, s.collision_log];
                [[s.log_prob, s.drawn_log_prob, s.unit_log_prob, 0.0], entropies].concat()
            };
            for (a, b) in numbers(host).iter().zip(numbers(device)) {
                assert!((a - b).abs() < 1e-4, "T = {temperature}: {host:?} against {device:?}");
            }
        }
    }
}
