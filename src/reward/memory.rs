//! State that rewards keep from one step to the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::acoer::Loop;
use super::ceeh_length::ProblemMeans;
use super::laser_d::Targets;

/// Memory of all rewards of a run, shared by its stages. It is part of a checkpoint, so that a resumed run continues
/// bit for bit. Fields that no reward of a stage needs stay empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Running mean of the pass rate of steps ([`super::DeepCompress`]).
    pub(super) pass_rate: Option<f64>,
    /// Target lengths ([`super::LaserD`]).
    pub(super) laser: Targets,
    /// Record of each problem ([`super::CeehLength`]).
    pub(super) records: BTreeMap<u64, ProblemMeans>,
    /// Best accuracy of a step so far ([`super::LazyLength`]).
    #[serde(default)]
    pub(super) best_accuracy: Option<f64>,
    /// The control loop of [`super::Acoer`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) acoer: Option<Loop>,
    /// The memory of rewards that are not built in, by name ([`super::Reward::name`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, remember};
    use super::super::{CeehLength, DeepCompress, LaserD};
    use super::*;

    /// JSON has no integer keys; a memory that a checkpoint altered would change a resumed run.
    #[test]
    fn a_memory_comes_back_from_a_checkpoint_as_it_was() {
        let group = [answer(true, 33), answer(false, 57), answer(true, 41)];
        let mut memory = Memory::default();
        for problem in [u64::MAX, 3, u64::MAX] {
            remember(&CeehLength::default(), &mut memory, &[(problem, &group)]);
            remember(&LaserD { every: 2, ..LaserD::default() }, &mut memory, &[(problem, &group)]);
            remember(&DeepCompress::default(), &mut memory, &[(problem, &group)]);
        }
        memory.custom.insert("mine".to_string(), serde_json::json!({ "mean": 0.1, "steps": [1, u64::MAX] }));
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
        assert_eq!(memory.records.len(), 2);
    }
}
