//! The names of all metrics in `metrics.jsonl`, with units.
//!
//! Names shared with TRL have TRL's meaning, with two exceptions. `entropy` is at temperature 1; TRL's, at the sampling
//! temperature, is here `entropy/sampling`. `sampling/…` is over the completions with a gradient, not over all, if the
//! engine of this process samples in the format of training. A test runs every method and rejects names that are not in
//! the list.

/// Name, unit and meaning of every metric. `<…>` in a name stands for any text: a reward's name, a data source, a set
/// of tokens; `[…]` is optional.
pub const ALL: &[[&str; 3]] = &[
    ["step", "", "number of training steps so far; 0 for the evaluation before training"],
    ["stage", "", "name of the stage"],
    ["loss", "", "total loss, mean over the optimiser steps"],
    ["policy_loss", "", "policy loss, without entropy bonus and KL penalty"],
    ["kl", "nats per token", "estimated KL divergence from the reference model, the model at the start of the run"],
    ["grad_norm", "", "global gradient norm before clipping, mean over the optimiser steps"],
    ["learning_rate", "", "learning rate"],
    ["max_completion_length", "tokens", "maximum completion length"],
    ["entropy_coef", "", "coefficient of the entropy bonus"],
    ["num_tokens", "tokens", "number of tokens trained on so far (sft)"],
    ["sampled_tokens", "tokens", "number of tokens sampled for training so far"],
    ["skipped_updates", "optimiser steps", "optimiser steps skipped so far because of non-finite values"],
    ["skipped_sequences", "sequences", "sequences skipped in this step because of non-finite values"],
    // Rewards.
    ["reward", "", "weighted sum of the rewards, mean over completions"],
    ["reward_std", "", "standard deviation of the reward within a group, mean over groups"],
    ["frac_reward_zero_std", "share of groups", "groups whose completions all have the same reward"],
    ["rewards/unscored", "share of completions", "completions without a score from any reward function"],
    ["rewards/<reward>/mean", "", "mean reward over the scored completions"],
    ["rewards/<reward>/std", "", "standard deviation of the reward over the scored completions"],
    ["rewards/<reward>/unscored", "share of completions", "completions without a score from this reward function"],
    ["rewards/command/restarts", "restarts", "restarts of the reward program in this step"],
    ["rewards/ceeh_length/hard_share", "share of completions", "completions of problems classified as hard"],
    ["rewards/ceeh_length/problems", "problems", "number of problems with a record"],
    ["rewards/lazy_length/best_accuracy", "share", "best accuracy of a step so far, which the reward compares with"],
    ["rewards/acoer/alpha", "", "current weight α of the length term"],
    ["rewards/acoer/budget", "tokens", "current length budget B; at this length and above the length term is 0"],
    ["rewards/deep_compress/pass_rate", "share", "running mean of the pass rate, which the reward compares with"],
    ["rewards/<reward>/target_<difficulty>", "tokens", "target length of a difficulty (laser_d, laser_de)"],
    ["advantage/positive_share", "share of completions", "completions with a positive advantage"],
    ["advantage/negative_share", "share of completions", "completions with a negative advantage"],
    ["advantage/correct_but_negative_share", "share of completions", "correct completions with a negative advantage"],
    [
        "advantage/all_right_std",
        "",
        "standard deviation of the advantages within a group, mean over the groups whose completions are all correct: \
         the effect of length alone",
    ],
    // Completions.
    ["completions/mean_length", "tokens", "mean completion length"],
    ["completions/min_length", "tokens", "minimum completion length"],
    ["completions/max_length", "tokens", "maximum completion length"],
    ["completions/mean_terminated_length", "tokens", "mean length of completions that were not truncated"],
    ["completions/min_terminated_length", "tokens", "minimum length of completions that were not truncated"],
    ["completions/max_terminated_length", "tokens", "maximum length of completions that were not truncated"],
    ["completions/mean_length_correct", "tokens", "mean length of correct completions"],
    ["completions/mean_length_wrong", "tokens", "mean length of incorrect completions"],
    ["completions/clipped_ratio", "share of completions", "completions truncated at the length limit"],
    ["entropy", "nats per token", "mean entropy at temperature 1 (sft: of the distribution that is trained)"],
    ["entropy/sampling", "nats per token", "mean entropy at the sampling temperature"],
    ["entropy/positive_advantage", "nats per token", "entropy at temperature 1, completions with positive advantage"],
    ["entropy/negative_advantage", "nats per token", "entropy at temperature 1, completions with negative advantage"],
    // Sampling and token losses.
    ["sampling/num_gen_batches", "batches", "number of batches sampled for this step"],
    ["sampling/replaced_problems", "problems", "problems replaced because all their completions have the same reward"],
    ["sampling/missing_problems", "problems", "number of problems that the step lacks after replacement"],
    [
        "sampling/sampling_logp_difference/<statistic>",
        "nats",
        "absolute difference of the log-probabilities of trainer and sampler, over completions with a gradient; \
         with another engine or rollout.dtype, over all completions",
    ],
    [
        "sampling/importance_sampling_ratio/<statistic>",
        "",
        "ratio of trainer to sampler probability, per token or per completion; with a correction, the corrected weight",
    ],
    ["sampling/kl", "nats per token", "KL divergence between sampler and trainer, mean of r - 1 - ln r"],
    ["sampling/mult_prob_error", "", "mean of e^|difference of trainer and sampler log-probability|"],
    ["sampling/masked_share", "share", "tokens or completions masked by the importance-sampling correction (weight 0)"],
    ["sampling/effective_sample_size", "share", "squared mean of the correction's weights over their mean square"],
    // Completions from servers.
    ["rollout/servers", "servers", "number of available servers"],
    ["rollout/retries", "requests", "retried requests for a group of completions"],
    ["rollout/sync_kl", "nats per token", "maximum KL divergence of a server's model after a weight transfer"],
    ["rollout/staleness_mean", "steps", "mean lag of the sampling weights behind the trained weights"],
    ["rollout/staleness_max", "steps", "maximum lag of the sampling weights behind the trained weights"],
    ["rollout/dropped_stale", "completions", "prefetched completions discarded because their stage had ended"],
    ["clip_ratio/low_mean", "share of tokens", "tokens clipped at the lower bound"],
    ["clip_ratio/high_mean", "share of tokens", "tokens clipped at the upper bound"],
    ["clip_ratio/region_mean", "share of tokens", "tokens clipped at either bound"],
    ["cispo_clip_ratio", "share of tokens", "tokens whose importance weight is clipped by CISPO"],
    ["tokens/silent_share", "share of tokens", "tokens whose advantage is removed by step_selection"],
    ["tokens/low_entropy_share", "share of tokens", "tokens excluded by top_entropy_quantile"],
    ["tokens/covariance_share", "share of tokens", "tokens selected by the covariance rule"],
    ["tokens/masked_completions", "share of completions", "truncated completions that are excluded from the loss"],
    // Evaluation, before, during and after training.
    ["eval/accuracy", "share of completions", "completions with a correct stated answer"],
    ["eval/accuracy_lenient", "share of completions", "the same if the last formula or number counts as the answer"],
    ["eval/mean_length", "tokens", "mean completion length"],
    ["eval/clipped_ratio", "share of completions", "completions truncated at the length limit"],
    ["eval/entropy", "nats per token", "mean entropy at temperature 1"],
    ["eval/mean@<n>", "share", "accuracy over n completions per problem"],
    ["eval/pass@<k>", "share of problems", "problems with a correct answer among k completions, unbiased estimate"],
    ["eval/maj@<n>", "share of problems", "majority vote: problems whose most frequent answer is correct"],
    ["eval/best@<n>", "share of problems", "problems with a correct answer among all n completions"],
    ["eval/families/<source>/accuracy", "share of completions", "accuracy on a data source"],
    ["eval/families/<source>/mean_length", "tokens", "mean completion length on a data source"],
    // Time and throughput.
    ["timing_s/step", "s", "whole step, without evaluation and checkpoint"],
    ["timing_s/gen", "s", "generation of the completions"],
    ["timing_s/weight_sync", "s", "writing the weights and transferring them to the servers"],
    ["timing_s/verify", "s", "comparison of the servers' models with the trained model"],
    ["timing_s/score", "s", "log-probabilities of the servers' completions under the trained model"],
    ["timing_s/reward", "s", "grading and rewards"],
    ["timing_s/update_actor", "s", "gradients and optimiser"],
    ["timing_s/old_log_prob", "s", "log-probabilities of the trained model before the first optimiser step"],
    ["timing_s/ref", "s", "log-probabilities of the reference model"],
    ["timing_s/conflict", "s", "measurement of the entropy conflict"],
    ["timing_s/conflict_cosine", "s", "measurement of the gradient cosine"],
    ["perf/throughput", "tokens per s", "prompt and completion tokens of the step per second of the whole step"],
    ["perf/sampling_throughput", "tokens per s", "completion tokens of the step per second of generation"],
    ["perf/padding_share", "share of tokens", "padding tokens in the training batches"],
    ["perf/distinct_shapes", "shapes", "number of tensor shapes so far; on a GPU, kernels are compiled for each"],
    // Entropy conflict, formulae in src/conflict/mod.rs. <tokens> is connectors, others or deciles (a list of ten).
    ["conflict/<tokens>/entropy", "nats", "mean entropy at temperature 1"],
    ["conflict/<tokens>/token_share", "share of tokens", "tokens of the set, as a share of all tokens"],
    ["conflict/<tokens>/grad_share", "share", "share of the squared logit gradient"],
    ["conflict/<tokens>/grad_share_task", "share", "share of the squared logit gradient of the task part"],
    ["conflict/<tokens>/grad_share_length", "share", "share of the squared logit gradient of the length part"],
    ["conflict/[<tokens>/]tokens", "tokens", "number of tokens"],
    ["conflict/[<tokens>/]log_prob", "nats", "mean log-probability at the sampling temperature"],
    ["conflict/[<tokens>/]advantage_task", "", "mean task part of the advantage"],
    ["conflict/[<tokens>/]advantage_length", "", "mean length part of the advantage"],
    ["conflict/[<tokens>/]push_task", "logit gradient", "weighted mean logit gradient of the task part (net push)"],
    ["conflict/[<tokens>/]push_length", "logit gradient", "weighted mean logit gradient of the length part (net push)"],
    ["conflict/[<tokens>/]opposition", "share", "fraction of the two net pushes that cancels"],
    ["conflict/[<tokens>/]cancellation", "share", "fraction of the parts' logit gradients that cancels, per token"],
    ["conflict/[<tokens>/]opposed_share", "share of tokens", "positive task advantage and negative length advantage"],
    ["conflict/[<tokens>/]entropy_change", "nats per token and unit step", "predicted change of entropy"],
    ["conflict/[<tokens>/]entropy_change_task", "nats per token and unit step", "the same due to the task part"],
    ["conflict/[<tokens>/]entropy_change_length", "nats per token and unit step", "the same due to the length part"],
    ["conflict/entropy_p80", "nats", "80th percentile of the entropy at the sampling temperature"],
    ["conflict/covariance/mean", "nats", "covariance of advantage and log-probability over tokens"],
    ["conflict/covariance/task", "nats", "covariance of the task advantage and the log-probability over tokens"],
    ["conflict/covariance/length", "nats", "covariance of the length advantage and the log-probability over tokens"],
    ["conflict/covariance/top_0.2_percent", "nats", "mean of the largest 0.2% of the terms of the covariance"],
    ["conflict/covariance/top_1_percent", "nats", "mean of the largest 1% of the terms of the covariance"],
    ["conflict/negative_given_correct", "share", "fraction of the correct completions that have a negative advantage"],
    ["conflict/connectors/per_1000", "per 1000 tokens", "number of connectors per 1000 tokens"],
    ["conflict/connectors/decile", "tenths", "mean entropy decile of connectors, by decile midpoint: 0.5 to 9.5"],
    ["conflict/connectors/opens_step", "share of connectors", "connectors that begin a sentence or line"],
    ["conflict/connectors/tokens_to_step_end", "tokens", "mean distance to the end of the sentence or line"],
    ["conflict/steps/opened_share", "share", "sentences and lines that begin with a connector"],
    ["conflict/steps/restated_after_connector", "share", "those that repeat an earlier result, after a connector"],
    ["conflict/steps/restated_otherwise", "share", "those that repeat an earlier result, without a connector"],
    ["conflict/types/jaccard", "", "Jaccard index of the lexicon and the token types of highest mean entropy"],
    ["conflict/types/lexicon_share", "share of types", "types of the lexicon among those of highest mean entropy"],
    ["conflict/types/base_share", "share of types", "types of the lexicon among all ranked token types"],
    ["conflict/cosine", "", "cosine of the gradients of the task part and the length part"],
    ["conflict/cosine/<layer>", "", "cosine of the two gradients with respect to the parameters of a layer"],
];

/// Return the pattern in the list that `name` matches.
pub fn pattern(name: &str) -> Option<&'static str> {
    ALL.iter().map(|[pattern, ..]| *pattern).find(|pattern| fits(pattern, name))
}

/// Whether `name` matches `pattern`, with or without the part in `[…]`.
fn fits(pattern: &str, name: &str) -> bool {
    let short =
        pattern.split_once('[').zip(pattern.split_once(']')).map(|((start, _), (_, end))| format!("{start}{end}"));
    short.is_some_and(|short| short == name) || fills_placeholders(&pattern.replace(['[', ']'], ""), name)
}

fn fills_placeholders(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('<') else { return pattern == name };
    let rest = rest.split_once('>').map_or("", |(_, rest)| rest);
    let Some(name) = name.strip_prefix(start) else { return false };
    (1..=name.len()).filter(|&end| name.is_char_boundary(end)).any(|end| fills_placeholders(rest, &name[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_patterns() {
        for name in
            ["eval/families/openai/gsm8k/accuracy", "rewards/laser_d/target_hard", "conflict/tokens", "eval/pass@8"]
        {
            assert!(pattern(name).is_some(), "{name}");
        }
        for name in ["loss2", "rewards//mean", "conflict/entropy", "conflict/deciles/", "eval/", "timing_s/"] {
            assert!(pattern(name).is_none(), "{name}");
        }
    }
}
