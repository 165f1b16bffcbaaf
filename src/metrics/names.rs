//! The names of all metrics in `metrics.jsonl`, with units.
//!
//! Names that TRL has, too, mean what they mean there, but for `entropy`: TRL's is that at the sampling temperature,
//! `entropy/sampling` here. A test runs every method and refuses a name that is not in the list.

/// Name, unit and meaning. `<…>` in a name stands for any text: a reward's name, a data source, a set of tokens; `[…]` may be left
/// out.
pub const ALL: &[[&str; 3]] = &[
    ["step", "", "steps so far; 0 is the evaluation before training"],
    ["stage", "", "name of the stage of the step"],
    ["loss", "", "loss of the step, mean over its optimiser steps"],
    ["policy_loss", "", "loss without entropy bonus and divergence"],
    ["kl", "nats per token", "estimated divergence from the model at the start of the run"],
    ["grad_norm", "", "norm of the gradient before clipping, mean over the optimiser steps"],
    ["learning_rate", "", "learning rate of the step"],
    ["max_completion_length", "tokens", "length limit of the step"],
    ["entropy_coef", "", "factor of the entropy bonus"],
    ["num_tokens", "tokens", "tokens trained on so far (sft)"],
    ["sampled_tokens", "tokens", "tokens sampled so far to learn from"],
    ["skipped_updates", "updates", "updates left out so far because of a value that was not finite"],
    ["skipped_sequences", "sequences", "sequences left out of the step because of a value that was not finite"],
    // Rewards.
    ["reward", "", "weighted sum of the rewards, mean over completions"],
    ["reward_std", "", "its standard deviation within a group, mean over groups"],
    ["frac_reward_zero_std", "share of groups", "groups whose completions all have the same reward"],
    ["rewards/unscored", "share of completions", "completions that no reward scored"],
    ["rewards/<reward>/mean", "", "mean over the completions that the reward scored"],
    ["rewards/<reward>/std", "", "standard deviation over the completions that the reward scored"],
    ["rewards/<reward>/unscored", "share of completions", "completions that the reward did not score"],
    ["rewards/command/restarts", "restarts", "starts of the reward program in the step, after the first"],
    ["rewards/ceeh_length/hard_share", "share of completions", "completions of problems that count as hard"],
    ["rewards/ceeh_length/problems", "problems", "problems that the reward has a record of"],
    ["rewards/lazy_length/best_accuracy", "share", "best accuracy of a step so far, which the reward goes by"],
    ["rewards/acoer/alpha", "", "weight of brevity that the control loop has come to"],
    ["rewards/acoer/budget", "tokens", "length from which nothing is paid for brevity"],
    ["rewards/deep_compress/pass_rate", "share", "moving average of the pass rate that the reward goes by"],
    ["rewards/<reward>/target_<difficulty>", "tokens", "target length of a difficulty (LASER-D, LASER-DE)"],
    ["advantage/positive_share", "share of completions", "completions with a positive advantage"],
    ["advantage/negative_share", "share of completions", "completions with a negative advantage"],
    ["advantage/correct_but_negative_share", "share of completions", "right completions with a negative advantage"],
    [
        "advantage/all_right_std",
        "",
        "standard deviation of advantages within a group whose completions are all right, mean over these groups: what \
         length alone does there",
    ],
    // Completions.
    ["completions/mean_length", "tokens", "mean length of completions"],
    ["completions/min_length", "tokens", "shortest completion"],
    ["completions/max_length", "tokens", "longest completion"],
    ["completions/mean_terminated_length", "tokens", "mean length of the completions that ended by themselves"],
    ["completions/mean_length_correct", "tokens", "mean length of right completions"],
    ["completions/mean_length_wrong", "tokens", "mean length of wrong completions"],
    ["completions/clipped_ratio", "share of completions", "completions ended by the length limit"],
    ["entropy", "nats per token", "entropy at temperature 1 (sft: of the distribution that is taught)"],
    ["entropy/sampling", "nats per token", "entropy at the sampling temperature"],
    [
        "entropy/positive_advantage",
        "nats per token",
        "entropy at temperature 1 in completions with a positive advantage",
    ],
    [
        "entropy/negative_advantage",
        "nats per token",
        "entropy at temperature 1 in completions with a negative advantage",
    ],
    // Sampling and the loss of tokens.
    ["sampling/num_gen_batches", "batches", "batches sampled for the step"],
    ["sampling/replaced_problems", "problems", "problems replaced because their completions have one reward"],
    ["sampling/missing_problems", "problems", "problems that the step has too few"],
    [
        "sampling/sampling_logp_difference/<statistic>",
        "nats",
        "|log-probability of the trainer less that of the sampler|, of completions that are learned from or, with another \
         engine or rollout.dtype, of all",
    ],
    [
        "sampling/importance_sampling_ratio/<statistic>",
        "",
        "probability of the trainer by that of the sampler, of a token or a completion; with a correction, the factor",
    ],
    ["sampling/kl", "nats per token", "divergence of the trainer from the sampler, mean of r - 1 - ln r"],
    ["sampling/mult_prob_error", "", "mean of e to |log-probability of the trainer less that of the sampler|"],
    ["sampling/masked_share", "share", "tokens, or completions, whose factor is 0 by the correction"],
    ["sampling/effective_sample_size", "share", "squared mean of the factors of the correction by the mean of squares"],
    // Completions from servers.
    ["rollout/servers", "servers", "servers that are asked"],
    ["rollout/retries", "requests", "requests for a group that were made again"],
    [
        "rollout/sync_kl",
        "nats per token",
        "largest divergence of a server's model from the trained one after new weights",
    ],
    ["rollout/staleness_mean", "updates", "updates that completions lag behind, mean"],
    ["rollout/staleness_max", "updates", "updates that completions lag behind, at most"],
    ["rollout/dropped_stale", "completions", "completions asked for early and not used: their stage was over"],
    ["clip_ratio/low_mean", "share of tokens", "tokens clipped below"],
    ["clip_ratio/high_mean", "share of tokens", "tokens clipped above"],
    ["clip_ratio/region_mean", "share of tokens", "tokens clipped"],
    ["cispo_clip_ratio", "share of tokens", "tokens whose ratio CISPO caps"],
    ["tokens/silent_share", "share of tokens", "tokens whose advantage step_selection takes"],
    ["tokens/low_entropy_share", "share of tokens", "tokens left out by top_entropy_quantile"],
    ["tokens/covariance_share", "share of tokens", "tokens chosen by their covariance"],
    ["tokens/masked_completions", "share of completions", "cut completions that take no part in the loss"],
    // Evaluation, before, during and after training.
    ["eval/accuracy", "share of completions", "completions with a stated, right answer"],
    ["eval/accuracy_lenient", "share of completions", "the same where the last formula or number counts as the answer"],
    ["eval/mean_length", "tokens", "mean length of completions"],
    ["eval/clipped_ratio", "share of completions", "completions ended by the length limit"],
    ["eval/entropy", "nats per token", "entropy at temperature 1"],
    ["eval/mean@<n>", "share", "accuracy over n completions per problem"],
    ["eval/pass@<k>", "share of problems", "problems with a right one among k completions, estimated without bias"],
    ["eval/maj@<n>", "share of problems", "problems whose most frequent answer is right"],
    ["eval/best@<n>", "share of problems", "problems with a right one among all n completions"],
    ["eval/families/<source>/accuracy", "share of completions", "accuracy on a data source"],
    ["eval/families/<source>/mean_length", "tokens", "mean length on a data source"],
    // Time and work.
    ["timing_s/step", "s", "the whole step, evaluation and checkpoint left out"],
    ["timing_s/gen", "s", "sampling"],
    ["timing_s/weight_sync", "s", "weights written and brought to servers"],
    ["timing_s/verify", "s", "servers' models compared with the trained one"],
    ["timing_s/score", "s", "servers' completions read by the trained model"],
    ["timing_s/reward", "s", "grading and rewards"],
    ["timing_s/update_actor", "s", "gradients and optimiser"],
    ["timing_s/old_log_prob", "s", "log-probabilities of the trainer before the first optimiser step"],
    ["timing_s/ref", "s", "log-probabilities of the model at the start of the run"],
    ["timing_s/conflict", "s", "measures of the entropy conflict"],
    ["timing_s/conflict_cosine", "s", "cosine of the two gradients"],
    ["perf/throughput", "tokens per s", "prompt and completion tokens of the step, by the time of the whole step"],
    ["perf/sampling_throughput", "tokens per s", "completion tokens of the step, by the time of sampling"],
    ["perf/padding_share", "share of tokens", "padding among the tokens that training computes"],
    ["perf/distinct_shapes", "shapes", "shapes of tensors seen so far, each compiled for on a GPU"],
    // The entropy conflict; the formulae are in src/conflict/mod.rs. <tokens>: connectors, others, or deciles (a list of ten).
    ["conflict/<tokens>/entropy", "nats", "mean entropy at temperature 1"],
    ["conflict/<tokens>/token_share", "share of tokens", "tokens of the set"],
    ["conflict/<tokens>/grad_share", "share", "part of the squared logit gradient"],
    ["conflict/<tokens>/grad_share_task", "share", "the same of the accuracy part"],
    ["conflict/<tokens>/grad_share_length", "share", "the same of the length part"],
    ["conflict/[<tokens>/]tokens", "tokens", "number of tokens"],
    ["conflict/[<tokens>/]log_prob", "nats", "mean log-probability at the sampling temperature"],
    ["conflict/[<tokens>/]advantage_task", "", "mean advantage of the accuracy part"],
    ["conflict/[<tokens>/]advantage_length", "", "mean advantage of the length part"],
    ["conflict/[<tokens>/]push_task", "logit gradient", "net push of the accuracy part"],
    ["conflict/[<tokens>/]push_length", "logit gradient", "net push of the length part"],
    ["conflict/[<tokens>/]opposition", "share", "part of the two net pushes that cancels"],
    ["conflict/[<tokens>/]cancellation", "share", "part of the efforts that cancels, token by token"],
    ["conflict/[<tokens>/]opposed_share", "share of tokens", "tokens that accuracy pushes up and length down"],
    ["conflict/[<tokens>/]entropy_change", "nats per token and unit step", "predicted change of entropy"],
    ["conflict/[<tokens>/]entropy_change_task", "nats per token and unit step", "the same along the accuracy part"],
    ["conflict/[<tokens>/]entropy_change_length", "nats per token and unit step", "the same along the length part"],
    ["conflict/entropy_p80", "nats", "entropy at the sampling temperature that 80% of the tokens do not exceed"],
    ["conflict/covariance/mean", "nats", "covariance of advantage and log-probability over tokens"],
    ["conflict/covariance/task", "nats", "the same of the accuracy part"],
    ["conflict/covariance/length", "nats", "the same of the length part"],
    ["conflict/covariance/top_0.2_percent", "nats", "mean of the largest 0.2% of the terms of the covariance"],
    ["conflict/covariance/top_1_percent", "nats", "mean of the largest 1% of the terms of the covariance"],
    ["conflict/negative_given_correct", "share", "right completions with a negative advantage, among right ones"],
    ["conflict/connectors/per_1000", "per 1000 tokens", "connectors"],
    ["conflict/connectors/decile", "tenths", "mean tenth of connectors by entropy, each by its middle: 0.5 to 9.5"],
    ["conflict/connectors/opens_step", "share of connectors", "connectors that begin a sentence or line"],
    ["conflict/connectors/tokens_to_step_end", "tokens", "mean distance to the end of the sentence or line"],
    ["conflict/steps/opened_share", "share", "sentences and lines that begin with a connector"],
    [
        "conflict/steps/restated_after_connector",
        "share",
        "those that repeat an earlier result, of those after a connector",
    ],
    ["conflict/steps/restated_otherwise", "share", "those that repeat an earlier result, of the others"],
    ["conflict/types/jaccard", "", "Jaccard index of the token types of highest mean entropy and the lexicon"],
    ["conflict/types/lexicon_share", "share of types", "types of the lexicon among those of highest mean entropy"],
    ["conflict/types/base_share", "share of types", "types of the lexicon among all ranked types"],
    ["conflict/cosine", "", "cosine of the gradients of the two parts"],
    ["conflict/cosine/<layer>", "", "the same with respect to the parameters of a layer"],
];

/// The pattern of the list that the name fits.
pub fn pattern(name: &str) -> Option<&'static str> {
    ALL.iter().map(|[pattern, ..]| *pattern).find(|pattern| fits(pattern, name))
}

/// `[…]` in a pattern may be left out.
fn fits(pattern: &str, name: &str) -> bool {
    let short =
        pattern.split_once('[').zip(pattern.split_once(']')).map(|((start, _), (_, end))| format!("{start}{end}"));
    short.is_some_and(|short| short == name) || stands_for(&pattern.replace(['[', ']'], ""), name)
}

fn stands_for(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('<') else { return pattern == name };
    let rest = rest.split_once('>').map_or("", |(_, rest)| rest);
    let Some(name) = name.strip_prefix(start) else { return false };
    (1..=name.len()).filter(|&end| name.is_char_boundary(end)).any(|end| stands_for(rest, &name[end..]))
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
