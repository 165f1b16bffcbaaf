//! Sampling against the plain forward pass.

use std::collections::HashMap;
use std::ops::ControlFlow;

use tempering::generate::{Completion, Request, Sampling, generate};
use tempering::model::{CausalLm, KvCache, ModelConfig};
use tempering::train::batch::{Sequence, completion_scores};

use crate::support::{device, distance, logits, ragged_prompts, requests, sampling, tiny, values};

fn complete(
    (config, model): &(ModelConfig, CausalLm),
    requests: &[Request],
    sampling: &Sampling,
) -> HashMap<[u64; 4], Completion> {
    let completions = generate(model, config, requests, sampling, |_, _| ControlFlow::Continue(()));
    requests.iter().map(|request| request.key).zip(completions).collect()
}

#[test]
fn decoding_with_a_cache_gives_the_logits_of_one_full_pass() {
    let (config, model) = tiny(1, &device());
    let (prompts, steps) = (ragged_prompts(), 5);
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let mut cache = KvCache::new(&config, prompts.len(), lengths.iter().max().unwrap() + steps, &device());
    model.forward(&prompts.concat(), &lengths, Some(&mut cache));
    cache.start_decoding(&lengths);
    let mut sequences = prompts;
    for step in 0..steps {
        let tokens: Vec<u32> = (0..sequences.len()).map(|row| (row * 91 + step * 17) as u32 % 512).collect();
        let cached = model.logits(model.forward(&tokens, &vec![1; tokens.len()], Some(&mut cache)));
        sequences.iter_mut().zip(&tokens).for_each(|(sequence, &token)| sequence.push(token));
        for (row, cached) in values(cached).chunks(config.vocab_size).enumerate() {
            let full = logits(&model, &[&sequences[row]]);
            let last = &full[full.len() - config.vocab_size..];
            assert!(distance(cached, last) < 1e-4, "row {row}, step {step}: {}", distance(cached, last));
        }
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let (_, model) = tiny(2, &device());
    let prompts = ragged_prompts();
    let together = logits(&model, &prompts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let alone: Vec<f32> = prompts.iter().flat_map(|prompt| logits(&model, &[prompt])).collect();
    assert!(distance(&together, &alone) < 1e-4);
}

#[test]
fn a_completion_does_not_depend_on_what_else_is_in_the_batch() {
    let subject = tiny(3, &device());
    let requests = requests(&ragged_prompts(), 3);
    let alone: HashMap<_, _> =
        requests.iter().flat_map(|request| complete(&subject, std::slice::from_ref(request), &sampling())).collect();
    let reversed: Vec<Request> = requests.iter().rev().cloned().collect();
    let every_other: Vec<Request> = requests.iter().step_by(2).cloned().collect();
    for (batch, rows) in [(&requests, 64), (&requests, 2), (&requests, 5), (&reversed, 64), (&every_other, 64)] {
        for (key, completion) in complete(&subject, batch, &Sampling { rows, ..sampling() }) {
            assert_eq!(completion.tokens, alone[&key].tokens, "{key:?}, {rows} rows");
            assert_eq!(completion.finished, alone[&key].finished);
            assert!(distance(&completion.log_probs, &alone[&key].log_probs) < 1e-5, "{key:?}, {rows} rows");
            assert!(distance(&completion.entropies, &alone[&key].entropies) < 1e-4, "{key:?}, {rows} rows");
        }
    }
}

#[test]
fn the_sampler_and_the_trainer_agree_on_log_probabilities_and_entropies() {
    let (config, model) = tiny(4, &device());
    let requests = requests(&ragged_prompts(), 2);
    for temperature in [1.0, 0.7] {
        let sampling = Sampling { temperature, ..sampling() };
        let completions = generate(&model, &config, &requests, &sampling, |_, _| ControlFlow::Continue(()));
        let sequence = |(r, c): (&Request, &Completion)| Sequence {
            tokens: [r.prompt.as_slice(), &c.tokens].concat(),
            prompt: r.prompt.len(),
        };
        let sequences: Vec<Sequence> = requests.iter().zip(&completions).map(sequence).collect();
        let scores = completion_scores(&model, &sequences, temperature);
        let sampled = |of: fn(&Completion) -> &Vec<f32>| completions.iter().flat_map(of).copied().collect::<Vec<_>>();
        assert!(distance(&values(scores.log_prob), &sampled(|c| &c.log_probs)) < 1e-4, "T = {temperature}");
        assert!(distance(&values(scores.entropy), &sampled(|c| &c.entropies)) < 1e-4, "T = {temperature}");
        let at_temperature = sampled(|c| &c.sampling_entropies);
        assert!(distance(&values(scores.entropy_sampling), &at_temperature) < 1e-4, "T = {temperature}");
    }
}

#[test]
fn a_completion_ends_with_its_first_stop_token_or_at_the_length_limit() {
    let subject = tiny(5, &device());
    let completions = complete(&subject, &requests(&ragged_prompts(), 8), &sampling());
    let (stop, limit) = (sampling().stop, sampling().max_completion_length);
    for completion in completions.values() {
        let first = completion.tokens.iter().position(|token| stop.contains(token));
        assert_eq!(completion.tokens.len(), first.map_or(limit, |first| first + 1));
        assert_eq!(completion.finished, first.is_some());
        assert_eq!(completion.log_probs.len(), completion.tokens.len());
    }
    let finished = completions.values().filter(|completion| completion.finished).count();
    assert!(finished > 0 && finished < completions.len(), "the test needs both ends: {finished} finished");
}

#[test]
fn greedy_decoding_takes_the_most_probable_token_of_the_full_pass() {
    let (config, model) = tiny(6, &device());
    let greedy = Sampling { temperature: 0.0, stop: Vec::new(), ..sampling() };
    let requests = requests(&ragged_prompts(), 1);
    let completions = generate(&model, &config, &requests, &greedy, |_, _| ControlFlow::Continue(()));
    for (request, completion) in requests.iter().zip(completions) {
        let mut read = request.prompt.clone();
        for token in completion.tokens {
            let full = logits(&model, &[&read]);
            let last = &full[full.len() - config.vocab_size..];
            let best = last.iter().copied().fold(f32::MIN, f32::max);
            assert!(best - last[token as usize] < 1e-4);
            read.push(token);
        }
    }
}

#[test]
fn whoever_watches_sees_every_token_and_may_end_it() {
    let (config, model) = tiny(7, &device());
    let requests = requests(&ragged_prompts(), 1);
    let mut seen = vec![Vec::new(); requests.len()];
    let completions = generate(&model, &config, &requests, &sampling(), |request, token| {
        seen[request].push(token);
        if seen[1].len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(seen[1].len(), 3);
    assert!(completions.iter().zip(&seen).all(|(completion, seen)| &completion.tokens == seen));
}
