//! How the work of a step is distributed over ranks.

use crate::error::{Error, Result};
use crate::train::settings::RlConfig;

/// Refuse more ranks than a step has completions. Return a remark for each part of a step in which ranks wait for
/// others, because the work does not divide by their number.
pub(super) fn check(ranks: usize, config: &RlConfig) -> Result<Vec<String>> {
    let (prompts, group) = (config.train.prompts_per_step, config.train.num_generations);
    let completions = prompts.saturating_mul(group);
    if ranks > completions {
        return Err(Error::Invalid(format!(
            "{ranks} ranks for the {completions} completions of a step (train.prompts_per_step = {prompts} x \
             train.num_generations = {group}): {} of them would have no work; start at most {completions} (mpirun -n \
             {completions}), or raise train.prompts_per_step",
            ranks - completions
        )));
    }
    let mut remarks = Vec::new();
    if config.rollout.served().is_none() && !prompts.is_multiple_of(ranks) {
        let (each, more) = (prompts / ranks, prompts % ranks);
        remarks.push(format!(
            "the work is uneven, and ranks wait for each other: of {ranks} ranks, {more} sample the completions of {} \
             and {} those of {each}, because the completions of a problem stay on one rank; set train.prompts_per_step \
             = {prompts} to a multiple of {ranks}, or start a number of ranks that divides it",
            counted(each + 1, "problem"),
            ranks - more
        ));
    }
    let updates = config.stages.iter().map(|stage| stage.loss.steps_per_generation).max().unwrap_or(1);
    let smallest = completions / updates.max(1);
    if smallest < ranks {
        remarks.push(format!(
            "ranks without work: an update has {} ({completions} per step, loss.steps_per_generation = {updates}), and \
             {} of the {ranks} ranks get none; lower loss.steps_per_generation, raise train.prompts_per_step, or start \
             fewer",
            counted(smallest, "completion"),
            ranks - smallest
        ));
    }
    Ok(remarks)
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Distribute items with the given `costs` over ranks: the most expensive first, each to the rank with the least load.
/// Return the sorted indices of each rank's items.
pub(super) fn distribute(costs: impl Iterator<Item = usize>, ranks: usize) -> Vec<Vec<usize>> {
    let mut costs: Vec<(usize, usize)> = costs.enumerate().collect();
    costs.sort_by_key(|&(place, cost)| (std::cmp::Reverse(cost), place));
    let mut shares = vec![(0, Vec::new()); ranks];
    for (place, cost) in costs {
        let (load, places) =
            shares.iter_mut().min_by_key(|(load, places)| (*load, places.len())).expect("there is a rank");
        *load += cost;
        places.push(place);
    }
    shares.iter_mut().for_each(|(_, places)| places.sort_unstable());
    shares.into_iter().map(|(_, places)| places).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::settings::{RolloutConfig, ServedConfig};

    #[test]
    fn the_largest_goes_first_to_the_rank_that_has_least() {
        let shares = distribute([3, 9, 4, 5, 1].into_iter(), 2);
        assert_eq!(shares, [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(distribute([2].into_iter(), 3), [vec![0], vec![], vec![]]);
        assert_eq!(distribute([0, 0, 0].into_iter(), 3), [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn ranks_without_work_are_told_and_more_than_completions_are_refused() {
        let mut config = RlConfig::default();
        (config.train.prompts_per_step, config.train.num_generations) = (8, 8);
        let remarks = |ranks: usize, config: &RlConfig| check(ranks, config).unwrap();
        for ranks in [1, 2, 4, 8] {
            assert!(remarks(ranks, &config).is_empty(), "{ranks}");
        }
        let uneven = remarks(3, &config);
        assert!(
            uneven.len() == 1
                && uneven[0].contains("of 3 ranks, 2 sample the completions of 3 problems and 1 those of 2")
        );
        let idle = remarks(16, &config);
        assert!(
            idle.len() == 1 && idle[0].contains("of 16 ranks, 8 sample the completions of 1 problem and 8 those of 0")
        );
        assert!(check(64, &config).is_ok());
        let refused = check(65, &config).unwrap_err().to_string();
        assert!(refused.contains("65 ranks for the 64 completions") && refused.contains("mpirun -n 64"), "{refused}");
        // Servers sample without ranks.
        config.rollout = RolloutConfig::Vllm(ServedConfig::default());
        assert!(remarks(16, &config).is_empty());
        config.stages = vec![crate::stage::Stage::default()];
        config.stages[0].loss.steps_per_generation = 8;
        let small = remarks(16, &config);
        assert!(small.len() == 1 && small[0].contains("an update has 8 completions"), "{small:?}");
        assert!(small[0].contains("8 of the 16 ranks get none"), "{small:?}");
    }
}
