//! Performance model of a step on numbers of ranks and servers that were not measured.

use serde::Serialize;

/// Numbers of ranks with a prediction.
const RANKS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

const OWN: &str = "not measured: t(n) = t_sampling(r) p(n) / p(r) + t_learning(r) c(n) / c(r) + 2 (n - 1) / n bytes / \
    bandwidth + t_update; r: the ranks that were measured, p and c: prompts and completions of the rank with most of \
    them; assuming identical ranks, a ring all-reduce and one device per rank";
const SERVED: &str = "not measured: t(n) = tokens / (servers tokens_per_s) + (1 + servers) bytes / sync_bytes_per_s + check_s + \
                      t_score + t_learning(r) c(n) / c(r) + 2 (n - 1) / n bytes / bandwidth + t_update; r: the ranks that were \
                      measured, c: completions of the rank with most of them; weights are written once and read by all servers, \
                      which share the bandwidth, rank 0 alone scores; overlapped (rollout.max_staleness = 1): the larger of sampling and \
                      t_learning + all-reduce + t_update, and the rest";

/// Servers that sample in the performance model.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Servers {
    /// Number of servers.
    pub servers: usize,
    /// Sampled tokens per second of each server.
    pub tokens_per_s: f64,
    /// Bytes per second at which weights are written, and read by all servers together.
    pub sync_bytes_per_s: f64,
    /// Time in seconds to check the weights of the servers, all at once, after an update.
    pub check_s: f64,
}

impl Servers {
    /// Return the time in seconds to write `bytes` of weights, to read them for each server, and to check all.
    fn sync_s(&self, bytes: usize) -> f64 {
        (1 + self.servers) as f64 * bytes as f64 / self.sync_bytes_per_s + self.check_s
    }
}

/// Time of each part of a step in seconds; `None` for a part that the step does not have or that was not measured.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct PartTimes {
    /// Sampling; every completion has full length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling_s: Option<f64>,
    /// Transfer of the weights to the servers, and their check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_s: Option<f64>,
    /// Scores of the servers' completions, by the model of rank 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_s: Option<f64>,
    /// Forward and backward passes.
    pub learning_s: f64,
    /// All-reduce of the gradients over ranks.
    pub all_reduce_s: f64,
    /// Gradient norm and AdamW, on every rank.
    pub update_s: f64,
    /// Sum of the parts.
    pub step_s: f64,
    /// The same if servers sample while the ranks learn (`rollout.max_staleness = 1`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlapped_step_s: Option<f64>,
}

impl PartTimes {
    /// Set the sums of the parts.
    pub(super) fn summed(self) -> Self {
        let training = self.learning_s + self.all_reduce_s + self.update_s;
        let rest = self.sync_s.unwrap_or(0.0) + self.score_s.unwrap_or(0.0);
        let overlapped = self.sync_s.and(self.sampling_s).map(|sampling| sampling.max(training) + rest);
        Self { step_s: self.sampling_s.unwrap_or(0.0) + training + rest, overlapped_step_s: overlapped, ..self }
    }

    /// Return the name of the longest part.
    pub(super) fn bound(&self) -> &'static str {
        let parts = [
            ("sampling", self.sampling_s),
            ("sync", self.sync_s),
            ("score", self.score_s),
            ("learning", Some(self.learning_s)),
            ("all_reduce", Some(self.all_reduce_s)),
            ("update", Some(self.update_s)),
        ];
        let times = parts.into_iter().filter_map(|(name, time)| Some((name, time?)));
        times.max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name)
    }
}

/// Predicted step.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Modelled {
    /// Number of ranks.
    pub ranks: usize,
    /// Predicted time of each part.
    #[serde(flatten)]
    pub parts: PartTimes,
    /// Name of the longest part.
    pub bound: &'static str,
}

/// The measured step from which others are predicted.
#[derive(Debug)]
pub(super) struct MeasuredStep {
    pub(super) ranks: usize,
    pub(super) prompts: usize,
    pub(super) completions: usize,
    /// Number of tokens of all completions.
    pub(super) tokens: usize,
    pub(super) parts: PartTimes,
    /// Bytes of the trained weights.
    pub(super) bytes: usize,
    pub(super) bytes_per_s: Option<f64>,
    pub(super) servers: Option<Servers>,
}

impl MeasuredStep {
    /// Return the formula of the model.
    pub(super) fn formula(&self) -> &'static str {
        if self.servers.is_some() { SERVED } else { OWN }
    }

    /// Return the ring bandwidth of each rank in bytes per second, given or measured; `None` if neither.
    pub(super) fn bandwidth(&self) -> Option<f64> {
        self.bytes_per_s.or((self.ranks > 1).then(|| self.sent(self.ranks) / self.parts.all_reduce_s))
    }

    /// Return the bytes that each of `ranks` ranks sends in an all-reduce.
    fn sent(&self, ranks: usize) -> f64 {
        2.0 * (ranks - 1) as f64 / ranks as f64 * self.bytes as f64
    }

    /// Predict the step on other numbers of ranks; with servers also on the measured one, whose step includes neither
    /// sampling nor sync. Without a bandwidth only a single rank can be predicted.
    pub(super) fn predict(&self) -> Vec<Modelled> {
        let ranks = RANKS.into_iter().filter(|&ranks| ranks != self.ranks || self.servers.is_some());
        ranks.filter_map(|ranks| self.at(ranks)).collect()
    }

    fn at(&self, ranks: usize) -> Option<Modelled> {
        let share = |items: usize| items.div_ceil(ranks) as f64 / items.div_ceil(self.ranks) as f64;
        let all_reduce_s = if ranks == 1 { 0.0 } else { self.sent(ranks) / self.bandwidth()? };
        let sampling_s = match &self.servers {
            Some(servers) => Some(self.tokens as f64 / (servers.servers as f64 * servers.tokens_per_s)),
            None => self.parts.sampling_s.map(|seconds| seconds * share(self.prompts)),
        };
        let sync_s = self.servers.map(|servers| servers.sync_s(self.bytes));
        let learning_s = self.parts.learning_s * share(self.completions);
        let parts = PartTimes { sampling_s, sync_s, learning_s, all_reduce_s, ..self.parts }.summed();
        Some(Modelled { ranks, parts, bound: parts.bound() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> MeasuredStep {
        let parts = PartTimes {
            sampling_s: Some(4.0),
            learning_s: 6.0,
            all_reduce_s: 0.5,
            update_s: 0.25,
            ..PartTimes::default()
        };
        let (ranks, prompts, completions, tokens) = (2, 4, 32, 800);
        MeasuredStep { ranks, prompts, completions, tokens, parts, bytes: 1000, bytes_per_s: None, servers: None }
    }

    #[test]
    fn a_prompt_is_sampled_by_one_rank_and_completions_are_learned_from_by_all() {
        let predicted = measured().predict();
        assert_eq!(predicted.iter().map(|step| step.ranks).collect::<Vec<_>>(), [1, 4, 8, 16, 32, 64]);
        let parts = |ranks: usize| predicted.iter().find(|step| step.ranks == ranks).unwrap().parts;
        // Two ranks took 0.5 s to send 1000 bytes each: 2000 bytes per second.
        let PartTimes { sampling_s, learning_s, all_reduce_s, step_s, overlapped_step_s, .. } = parts(4);
        assert_eq!((sampling_s, learning_s, all_reduce_s), (Some(2.0), 3.0, 0.75));
        assert_eq!((step_s, overlapped_step_s), (6.0, None));
        assert_eq!((parts(1).sampling_s, parts(1).learning_s, parts(1).all_reduce_s), (Some(8.0), 12.0, 0.0));
        assert_eq!((parts(64).sampling_s, parts(64).learning_s), (Some(2.0), 0.375));
        assert_eq!((predicted[0].bound, predicted[5].bound), ("learning", "sampling"));
    }

    #[test]
    fn servers_sample_and_are_checked_together_and_share_the_bandwidth() {
        let servers = Servers { servers: 4, tokens_per_s: 25.0, sync_bytes_per_s: 2000.0, check_s: 0.5 };
        let own = measured();
        let parts = PartTimes { sampling_s: None, score_s: Some(2.0), ..own.parts };
        let predicted = MeasuredStep { parts, servers: Some(servers), ..own }.predict();
        let two = predicted.iter().find(|step| step.ranks == 2).unwrap();
        let PartTimes { sampling_s, sync_s, score_s, learning_s, step_s, overlapped_step_s, .. } = two.parts;
        assert_eq!((sampling_s, sync_s, score_s, learning_s), (Some(8.0), Some(3.0), Some(2.0), 6.0));
        assert_eq!((step_s, overlapped_step_s), (19.75, Some(13.0)));
        assert_eq!(two.bound, "sampling");
        // Rank 0 alone scores: more ranks do not shorten it.
        assert!(predicted.iter().all(|step| step.parts.score_s == Some(2.0)));
    }

    #[test]
    fn one_rank_without_a_bandwidth_predicts_no_others() {
        let alone = MeasuredStep { ranks: 1, ..measured() };
        assert!(alone.predict().is_empty());
        let given = MeasuredStep { bytes_per_s: Some(1e9), ..alone };
        assert_eq!(given.predict().len(), 6);
    }
}
