//! Sampling against the plain forward pass.

use std::collections::HashMap;

use tempering::generate::{
    Completion, Distribution, FinishReason, Request, Sampling, Watch, cache_shape, generate, read,
};
use tempering::model::{CacheShape, CausalLm, KvCache, ModelConfig};
use tempering::train::batch::Sequence;
use tempering::train::learner::{Learner, TokenScores};

use crate::support::{device, distance, logits, ragged_prompts, requests, sampling, tiny, values, within};

fn complete(
    (config, model): &(ModelConfig, CausalLm),
    requests: &[Request],
    sampling: &Sampling,
) -> HashMap<[u64; 4], Completion> {
    let completions = generate(model, config, requests, sampling, |_, _| Watch::Continue).unwrap();
    requests.iter().map(|request| request.key).zip(completions).collect()
}

#[test]
fn decoding_with_a_cache_gives_the_logits_of_one_full_pass() {
    let (config, model) = tiny(1, &device());
    let (prompts, steps) = (ragged_prompts(), 5);
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let count = prompts.len();
    let shape = CacheShape {
        prompts: count + 1,
        prompt_length: lengths.iter().max().unwrap() + 3,
        completions: 2 * count,
        completion_length: steps,
    };
    let mut cache = KvCache::new(&config, shape, burn::tensor::FloatDType::F32, &device());
    // Permuted slots: the position of a sequence in the cache must not matter.
    let read: Vec<(usize, usize)> = (0..count).map(|row| ((row + 1) % (count + 1), lengths[row])).collect();
    let slots: Vec<usize> = (0..count).map(|row| 2 * count - 1 - 2 * row).collect();
    cache.read(&read);
    model.forward(&prompts.concat(), &lengths, Some(&mut cache));
    slots.iter().zip(&read).for_each(|(&slot, &(prompt, _))| cache.start(slot, prompt));
    let mut sequences = prompts;
    for step in 0..steps {
        let tokens: Vec<u32> = (0..sequences.len()).map(|row| (row * 91 + step * 17) as u32 % 512).collect();
        cache.step(&slots, slots.len());
        let cached = model.logits(model.forward(&tokens, &vec![1; tokens.len()], Some(&mut cache)));
        sequences.iter_mut().zip(&tokens).for_each(|(sequence, &token)| sequence.push(token));
        for (row, cached) in values(cached).chunks(config.vocab_size).enumerate() {
            let full = logits(&model, &[&sequences[row]]);
            let last = &full[full.len() - config.vocab_size..];
            assert!(distance(cached, last) < within(1e-4), "row {row}, step {step}: {}", distance(cached, last));
        }
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let (_, model) = tiny(2, &device());
    let prompts = ragged_prompts();
    let together = logits(&model, &prompts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let alone: Vec<f32> = prompts.iter().flat_map(|prompt| logits(&model, &[prompt])).collect();
    assert!(distance(&together, &alone) < within(1e-4));
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
            assert_eq!(completion.finish_reason, alone[&key].finish_reason);
            for (at, alone, tolerance) in [
                (&completion.log_probs, &alone[&key].log_probs, within(1e-5)),
                (&completion.entropies, &alone[&key].entropies, within(1e-4)),
            ] {
                assert!(distance(at, alone) < tolerance, "{key:?}, {rows} rows: {}", distance(at, alone));
            }
        }
    }
}

#[test]
fn the_sampler_and_the_trainer_agree_on_log_probabilities_and_entropies() {
    let (config, model) = tiny(4, &device());
    let requests = requests(&ragged_prompts(), 2);
    for temperature in [1.0, 0.7] {
        let sampling = Sampling { distribution: Distribution::at(temperature), ..sampling() };
        let completions = generate(&model, &config, &requests, &sampling, |_, _| Watch::Continue).unwrap();
        let sequence = |(r, c): (&Request, &Completion)| Sequence {
            tokens: [r.prompt.as_slice(), &c.tokens].concat(),
            prompt: r.prompt.len(),
        };
        let sequences: Vec<Sequence> = requests.iter().zip(&completions).map(sequence).collect();
        let read = Learner { temperature, ..Learner::default() }.read(&model, &sequences);
        let trained = |of: fn(&TokenScores) -> &Vec<f32>| read.iter().flat_map(of).copied().collect::<Vec<_>>();
        let sampled = |of: fn(&Completion) -> &Vec<f32>| completions.iter().flat_map(of).copied().collect::<Vec<_>>();
        for (trained, sampled) in [
            (trained(|s| &s.log_prob), sampled(|c| &c.log_probs)),
            (trained(|s| &s.entropy), sampled(|c| &c.entropies)),
            (trained(|s| &s.sampling_entropy), sampled(|c| &c.sampling_entropies)),
        ] {
            assert!(distance(&trained, &sampled) < within(1e-4), "T = {temperature}");
        }
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
        assert_eq!(completion.finished(), first.is_some());
        assert_eq!(completion.log_probs.len(), completion.tokens.len());
    }
    let finished = completions.values().filter(|completion| completion.finished()).count();
    assert!(finished > 0 && finished < completions.len(), "the test needs both ends: {finished} finished");
}

#[test]
fn greedy_decoding_takes_the_most_probable_token_of_the_full_pass() {
    let (config, model) = tiny(6, &device());
    let greedy = Sampling { distribution: Distribution::at(0.0), stop: Vec::new(), ..sampling() };
    let requests = requests(&ragged_prompts(), 1);
    let completions = generate(&model, &config, &requests, &greedy, |_, _| Watch::Continue).unwrap();
    for (request, completion) in requests.iter().zip(completions) {
        let mut read = request.prompt.clone();
        for token in completion.tokens {
            let full = logits(&model, &[&read]);
            let last = &full[full.len() - config.vocab_size..];
            let best = last.iter().copied().fold(f32::MIN, f32::max);
            assert!(best - last[token as usize] < within(1e-4));
            read.push(token);
        }
    }
}

#[test]
fn whoever_watches_sees_every_token_and_may_end_a_completion_or_all() {
    let (config, model) = tiny(7, &device());
    let requests = requests(&ragged_prompts(), 1);
    let sampling = Sampling { stop: Vec::new(), rows: 2, ..sampling() };
    let mut seen = vec![Vec::new(); requests.len()];
    let completions = generate(&model, &config, &requests, &sampling, |request, token| {
        seen[request].push(token);
        match (request, seen[request].len()) {
            (0, 5) => Watch::EndCompletion,
            (2, 3) => Watch::EndAll,
            _ => Watch::Continue,
        }
    })
    .unwrap();
    assert!(completions.iter().zip(&seen).all(|(completion, seen)| &completion.tokens == seen));
    assert_eq!((completions[0].tokens.len(), completions[0].finish_reason), (5, FinishReason::Watcher));
    assert_eq!((completions[2].tokens.len(), completions[2].finish_reason), (3, FinishReason::Length));
}

/// A small model is sampled from by an engine on each of several threads. They do not wait for the watcher, whose decisions
/// must have the same effect.
#[test]
fn several_engines_sample_what_one_samples() {
    let (config, model) = tiny(7, &device());
    let prompts: Vec<Vec<u32>> =
        (0..9).map(|problem| (0..3 + problem).map(|i| 5 + i * 37 + problem).collect()).collect();
    let requests = requests(&prompts, 4);
    let few_stops = Sampling { stop: (100..103).collect(), max_completion_length: 90, ..sampling() };
    let sampled = |threads: usize, last: usize| {
        let (mut seen, mut count) = (vec![Vec::new(); requests.len()], 0);
        let completions = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            generate(&model, &config, &requests, &few_stops, |request, token| {
                seen[request].push(token);
                count += 1;
                match token {
                    _ if count == last => Watch::EndAll,
                    103..107 => Watch::EndCompletion,
                    _ => Watch::Continue,
                }
            })
            .unwrap()
        });
        assert!(completions.iter().zip(&seen).all(|(completion, seen)| &completion.tokens == seen), "{threads}");
        completions
    };
    let one = sampled(1, usize::MAX);
    for reason in [FinishReason::Stop, FinishReason::Watcher, FinishReason::Length] {
        assert!(one.iter().any(|completion| completion.finish_reason == reason), "{reason:?}");
    }
    for (completion, one) in sampled(3, usize::MAX).iter().zip(&one) {
        assert_eq!((&completion.tokens, completion.finish_reason), (&one.tokens, one.finish_reason));
        assert!(distance(&completion.log_probs, &one.log_probs) < within(1e-5));
    }
    let ended = sampled(3, 1000);
    assert_eq!(ended.iter().map(|completion| completion.tokens.len()).sum::<usize>(), 1000);
    assert!(ended.iter().zip(&one).all(|(completion, one)| one.tokens.starts_with(&completion.tokens)));
    // A panic of the watcher leaves no engine waiting.
    let once = |watch: fn()| {
        let sampled = || {
            generate(&model, &config, &requests, &few_stops, |_, _| {
                watch();
                Watch::EndAll
            })
        };
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(|| sampled().is_ok())
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| once(|| panic!("watcher")))).is_err());
    assert!(once(|| ()));
}

#[test]
fn a_budget_of_cached_tokens_bounds_the_rows_and_changes_no_completion() {
    let subject = tiny(8, &device());
    let requests = requests(&ragged_prompts(), 3);
    let free = complete(&subject, &requests, &sampling());
    let longest = requests.iter().map(|request| request.prompt.len()).max().unwrap();
    for rows in [1, 2, 4] {
        let tokens = rows * (longest + sampling().max_completion_length);
        let bounded = Sampling { cache_tokens: tokens, ..sampling() };
        let shape = cache_shape(&subject.0, &requests, &bounded).unwrap();
        assert!(shape.completions == rows && shape.tokens() <= tokens, "{shape:?}");
        for (key, completion) in complete(&subject, &requests, &bounded) {
            assert_eq!(completion.tokens, free[&key].tokens, "{rows} rows");
        }
    }
    let small = Sampling { cache_tokens: longest, ..sampling() };
    let error = cache_shape(&subject.0, &requests, &small).unwrap_err().to_string();
    assert!(error.contains(&format!("cache_tokens = {longest}")), "{error}");
}

#[test]
fn truncated_sampling_stays_within_what_the_full_pass_allows() {
    let (config, model) = tiny(9, &device());
    let requests = requests(&ragged_prompts(), 2);
    let distribution = Distribution { top_k: 3, ..Distribution::default() };
    let sampling = Sampling { distribution, ..sampling() };
    let completions = generate(&model, &config, &requests, &sampling, |_, _| Watch::Continue).unwrap();
    for (request, completion) in requests.iter().zip(&completions) {
        let read = [request.prompt.as_slice(), &completion.tokens].concat();
        let full = logits(&model, &[&read]);
        for (at, &token) in completion.tokens.iter().enumerate() {
            let row = &full[(request.prompt.len() - 1 + at) * config.vocab_size..][..config.vocab_size];
            let above = row.iter().filter(|&&z| z > row[token as usize] + within(1e-4)).count();
            assert!(above < 3, "a token with {above} more probable ones was drawn from the top 3");
            assert!(completion.drawn_log_probs[at] > completion.log_probs[at]);
        }
    }
}

/// On a GPU, tokens are read back in batches. Tokens decoded after the end of a completion are discarded.
#[test]
fn how_often_tokens_are_read_changes_no_completion() {
    // Long enough for a GPU to record the steps between two reads and to replay them.
    let most = 40;
    let subject = tiny(5, &device());
    let batch = requests(&ragged_prompts(), 3);
    for rows in [5, 12] {
        let complete = |tokens_per_read: usize| {
            let sampling = Sampling { rows, tokens_per_read, max_completion_length: most, ..sampling() };
            generate(&subject.1, &subject.0, &batch, &sampling, |_, _| Watch::Continue).unwrap()
        };
        let seen_at_once = complete(1);
        for tokens_per_read in [2, 3, 8, 50] {
            for (one, other) in seen_at_once.iter().zip(complete(tokens_per_read)) {
                assert_eq!((&one.tokens, one.finish_reason), (&other.tokens, other.finish_reason));
                assert!(distance(&one.log_probs, &other.log_probs) < within(1e-5));
            }
        }
    }
}

/// Return all per-token figures of a completion.
fn columns(completion: &Completion) -> [&[f32]; 7] {
    [
        &completion.log_probs,
        &completion.drawn_log_probs,
        &completion.unit_log_probs,
        &completion.entropies,
        &completion.sampling_entropies,
        &completion.collisions,
        &completion.collision_logs,
    ]
}

/// Scoring given tokens yields the figures of the sampled completion, however the tokens are divided into passes.
#[test]
fn given_completions_have_the_figures_of_sampled_ones() {
    let (config, model) = tiny(10, &device());
    let all = Distribution::default();
    for distribution in [
        all,
        Distribution::at(0.0),
        Distribution::at(0.6),
        Distribution::at(1.4),
        Distribution { top_k: 5, ..Distribution::at(1.2) },
        Distribution { top_p: 0.8, min_p: 0.01, ..all },
        Distribution { repetition_penalty: 1.3, ..all },
        Distribution { repetition_penalty: 1.3, top_k: 7, top_p: 0.9, ..Distribution::at(0.8) },
        Distribution { repetition_penalty: 1.3, ..Distribution::at(0.0) },
    ] {
        let sampling = Sampling { distribution, ..sampling() };
        let requests = requests(&ragged_prompts(), 2);
        let sampled = generate(&model, &config, &requests, &sampling, |_, _| Watch::Continue).unwrap();
        let mut sequences: Vec<(&[u32], &[u32])> =
            requests.iter().zip(&sampled).map(|(request, of)| (&request.prompt[..], &of.tokens[..])).collect();
        sequences.insert(3, (&requests[0].prompt, &[]));
        for tokens_per_pass in [1, 30, usize::MAX] {
            let mut read = read(&model, &sequences, &distribution, tokens_per_pass);
            assert!(read.remove(3).is_empty());
            for (read, sampled) in read.iter().zip(&sampled) {
                let read = Completion::of(read, sampled.finish_reason);
                assert_eq!(read.tokens, sampled.tokens);
                for (column, (read, sampled)) in columns(&read).iter().zip(columns(sampled)).enumerate() {
                    let far = distance(read, sampled);
                    assert!(
                        far < within(1e-5),
                        "{distribution:?}, {tokens_per_pass} tokens per pass, figure {column}: {far}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_given_token_that_truncation_leaves_out_was_not_drawn() {
    let (_, model) = tiny(11, &device());
    let (prompt, completion): (&[u32], Vec<u32>) = (&[5, 9], (0..512).collect());
    let alone: Vec<(&[u32], &[u32])> = completion.iter().map(|token| (prompt, std::slice::from_ref(token))).collect();
    let distribution = Distribution { top_k: 4, ..Distribution::default() };
    let read = read(&model, &alone, &distribution, usize::MAX).concat();
    let kept: Vec<f32> = read.iter().map(|token| token.drawn_log_prob).filter(|log| log.is_finite()).collect();
    assert_eq!(kept.len(), 4);
    assert!((kept.iter().map(|log| log.exp()).sum::<f32>() - 1.0).abs() < within(1e-5));
    assert!(read.iter().all(|token| token.log_prob.is_finite()));
}
