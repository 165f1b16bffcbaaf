//! Results of a study: each arm's best setting on the selection seeds, and its figures on the report seeds.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Plan, Planned, RunOutcome, SourceResults, Store};
use crate::eval::figures::Estimate;
use crate::eval::student;
use crate::metrics::{deviation, mean};
use crate::tasks::reading::TraceCounts;

/// Results of the finished runs of a study.
#[derive(Debug, Clone, Serialize)]
pub struct Findings {
    /// Name of the study.
    pub name: String,
    /// Tokens sampled by each run.
    pub sampled_tokens: u64,
    /// Largest mean length of a chosen setting, as a share of the base model's.
    pub length_budget: f64,
    /// Seeds for choosing settings, and seeds for reporting.
    pub seeds: [Vec<u64>; 2],
    /// Name of the arm that the others are compared with.
    pub against: String,
    /// The base model; `None` if no run has finished.
    pub base: Option<HeldOutFigures>,
    /// Results of each arm.
    pub arms: Vec<ArmFindings>,
    /// Names of the runs that have not finished, or failed.
    pub missing: Vec<String>,
}

impl HeldOutFigures {
    /// Return the share of products that were checked, over the data sources whose names start with `prefix`.
    pub fn checked(&self, prefix: &str) -> Option<f64> {
        let sum = self.read(prefix);
        (sum.products > 0).then(|| sum.checked as f64 / sum.products as f64)
    }

    /// Return the mean entropy at the decision whether to check a product, in nats.
    pub fn decision_entropy(&self, prefix: &str) -> Option<f64> {
        let sum = self.read(prefix);
        (sum.decisions > 0).then(|| sum.decision_entropy / sum.decisions as f64)
    }

    /// Return the mean entropy at the choice of a door, in nats.
    pub fn door_entropy(&self) -> Option<f64> {
        let sum = self.read("");
        (sum.doors > 0).then(|| sum.door_entropy / sum.doors as f64)
    }

    fn read(&self, prefix: &str) -> TraceCounts {
        let mut sum = TraceCounts::default();
        self.readings.iter().filter(|(name, _)| name.starts_with(prefix)).for_each(|(_, reading)| sum.add(reading));
        sum
    }
}

/// Results of an arm.
#[derive(Debug, Clone, Serialize)]
pub struct ArmFindings {
    /// Name of the arm.
    pub name: String,
    /// Each setting as keys and values, with its mean over the selection seeds; `None` if a run is missing.
    pub settings: Vec<(BTreeMap<String, String>, Option<HeldOutFigures>)>,
    /// Index of the chosen setting; `None` if all exceed the length budget or a run is missing.
    pub chosen: Option<usize>,
    /// Figures of the chosen setting over the report seeds.
    pub reported: Option<HeldOutFigures>,
    /// Accuracy minus that of the arm it is compared with, paired by problem.
    pub difference: Option<Estimate>,
    /// Range of the figures over the settings: the effect that a setting can have.
    pub spread: Option<Spread>,
    /// Training curve of each reported run.
    pub curves: Vec<Vec<super::CurvePoint>>,
}

/// Minimum and maximum over the settings of an arm.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    /// Accuracy.
    pub accuracy: [f64; 2],
    /// Mean length over the base model's.
    pub length_ratio: [f64; 2],
}

/// Held-out figures over several runs.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOutFigures {
    /// Number of runs.
    pub runs: usize,
    /// Share of correct completions, with an interval over seeds and problems; over problems alone for a single run.
    pub accuracy: Estimate,
    /// Mean length in tokens.
    pub length: f64,
    /// Mean length over the base model's.
    pub length_ratio: f64,
    /// Minimum and maximum accuracy of a run.
    pub accuracy_of_runs: [f64; 2],
    /// Share of completions that were truncated.
    pub cut: f64,
    /// Accuracy and mean length in tokens by data source.
    pub sources: BTreeMap<String, [f64; 2]>,
    /// Figures read from traces, by data source.
    pub readings: BTreeMap<String, TraceCounts>,
    /// Standard deviation of advantages in training groups whose completions are all correct.
    pub all_right_std: Option<f64>,
    /// Training entropy in the first and the last part of the curve, in nats per token.
    pub entropy: Option<[f64; 2]>,
}

type Sources = BTreeMap<String, SourceResults>;

impl Findings {
    /// Compute the results of the finished runs in `store`.
    pub fn new(plan: &Plan, store: &Store) -> Self {
        let config = &plan.config;
        let base = plan.choosing().iter().find_map(|planned| store.get(planned)).map(|outcome| outcome.base.clone());
        let base = base.map(|base| measured(&[&base], &[], f64::NAN));
        let length = base.as_ref().map_or(f64::NAN, |base| base.length);
        let mut missing = Vec::new();
        let mut arms: Vec<ArmFindings> =
            (0..config.arms.len()).map(|arm| arm_findings(plan, store, arm, length, &mut missing)).collect();
        let ends = |arm: usize| -> Vec<&Sources> {
            let setting = arms[arm].chosen;
            setting.map_or_else(Vec::new, |setting| {
                let done = |&seed: &u64| store.get(&plan.run(arm, setting, seed)).map(|outcome| &outcome.last);
                // All seeds or none: a subset of the seeds would not be comparable with the other arm.
                config.report_seeds.iter().map(done).collect::<Option<_>>().unwrap_or_default()
            })
        };
        let against = ends(config.against());
        let differences: Vec<Option<Estimate>> =
            (0..arms.len()).map(|arm| difference(&ends(arm), &against).filter(|_| arm != config.against())).collect();
        arms.iter_mut().zip(differences).for_each(|(arm, difference)| arm.difference = difference);
        Self {
            name: config.name.clone(),
            sampled_tokens: config.sampled_tokens,
            length_budget: config.length_budget,
            seeds: [config.choose_seeds.clone(), config.report_seeds.clone()],
            against: config.arms.get(config.against()).map(|arm| arm.name.clone()).unwrap_or_default(),
            base: base.map(|base| HeldOutFigures { length_ratio: 1.0, ..base }),
            arms,
            missing,
        }
    }

    /// Return the index of the chosen setting of each arm.
    pub fn chosen(&self) -> Vec<Option<usize>> {
        self.arms.iter().map(|arm| arm.chosen).collect()
    }
}

fn arm_findings(plan: &Plan, store: &Store, arm: usize, base: f64, missing: &mut Vec<String>) -> ArmFindings {
    let config = &plan.config;
    let mut outcomes = |setting: usize, seeds: &[u64]| -> Option<Vec<&RunOutcome>> {
        let planned: Vec<Planned> = seeds.iter().map(|&seed| plan.run(arm, setting, seed)).collect();
        let lacking = planned.iter().filter(|planned| store.get(planned).is_none());
        missing.extend(lacking.map(|planned| planned.config.name.clone()));
        let found: Vec<&RunOutcome> = planned.iter().filter_map(|planned| store.get(planned)).collect();
        (found.len() == planned.len()).then_some(found)
    };
    let of = |outcomes: Vec<&RunOutcome>| {
        measured(&outcomes.iter().map(|outcome| &outcome.last).collect::<Vec<_>>(), &outcomes, base)
    };
    let settings: Vec<(BTreeMap<String, String>, Option<HeldOutFigures>)> = (0..config.arms[arm].settings.len())
        .map(|setting| (plan.described(arm, setting), outcomes(setting, &config.choose_seeds).map(of)))
        .collect();
    let whole: Option<Vec<&HeldOutFigures>> = settings.iter().map(|(_, measured)| measured.as_ref()).collect();
    let fits = |measured: &HeldOutFigures| config.arms[arm].any_length || measured.length_ratio <= config.length_budget;
    let chosen = whole.as_ref().and_then(|all| {
        let fitting = all.iter().enumerate().filter(|(_, measured)| fits(measured));
        // `max_by` returns the last maximum: reversed, ties go to the first setting.
        fitting.rev().max_by(|a, b| a.1.accuracy.value.total_cmp(&b.1.accuracy.value)).map(|(setting, _)| setting)
    });
    let range = |value: &dyn Fn(&HeldOutFigures) -> f64, all: &[&HeldOutFigures]| {
        let values = || all.iter().map(|measured| value(measured));
        [values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)]
    };
    let spread = whole.as_ref().filter(|all| !all.is_empty()).map(|all| Spread {
        accuracy: range(&|m| m.accuracy.value, all),
        length_ratio: range(&|m| m.length_ratio, all),
    });
    let reported = chosen.and_then(|setting| outcomes(setting, &config.report_seeds));
    ArmFindings {
        name: config.arms[arm].name.clone(),
        settings,
        chosen,
        curves: reported.iter().flatten().map(|outcome| outcome.curve.clone()).collect(),
        reported: reported.map(of),
        difference: None,
        spread,
    }
}

/// Return 1 or 0 for each run and problem: whether the problem was solved. Shape `[runs, problems]`.
fn right(runs: &[&Sources]) -> Vec<Vec<f64>> {
    let bits = |sources: &Sources| sources.values().flat_map(|source| source.correct.bytes()).collect::<Vec<_>>();
    runs.iter().map(|sources| bits(sources).into_iter().map(|bit| f64::from(u8::from(bit == b'1'))).collect()).collect()
}

fn measured(runs: &[&Sources], outcomes: &[&RunOutcome], base: f64) -> HeldOutFigures {
    let right = right(runs);
    let count = right.first().map_or(0, Vec::len);
    let of_runs: Vec<f64> = right.iter().map(|run| mean(run)).collect();
    let lengths = |sources: &Sources| sources.values().flat_map(|source| source.lengths.clone()).collect::<Vec<_>>();
    let average = |lengths: Vec<usize>| lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
    let length = mean(&runs.iter().map(|sources| average(lengths(sources))).collect::<Vec<_>>());
    let names: BTreeSet<&String> = runs.iter().flat_map(|sources| sources.keys()).collect();
    let of_source = |name: &String| {
        let found: Vec<&SourceResults> = runs.iter().filter_map(|sources| sources.get(name)).collect();
        let all: Vec<f64> = found
            .iter()
            .flat_map(|source| source.correct.bytes())
            .map(|bit| f64::from(u8::from(bit == b'1')))
            .collect();
        [mean(&all), average(found.iter().flat_map(|source| source.lengths.clone()).collect())]
    };
    let reading = |name: &String| {
        let mut sum = TraceCounts::default();
        runs.iter().filter_map(|sources| sources.get(name)).for_each(|source| sum.add(&source.reading));
        sum
    };
    let entropies = |at: fn(&[super::CurvePoint]) -> Option<&super::CurvePoint>| {
        let values: Vec<f64> = outcomes.iter().filter_map(|outcome| at(&outcome.curve)).map(|m| m.entropy).collect();
        (!values.is_empty()).then(|| mean(&values))
    };
    let spreads: Vec<f64> =
        outcomes.iter().flat_map(|outcome| &outcome.curve).filter_map(|moment| moment.all_right_std).collect();
    let cut: usize = runs.iter().flat_map(|sources| sources.values()).map(|source| source.cut).sum();
    HeldOutFigures {
        runs: runs.len(),
        accuracy: estimate(&right),
        length,
        length_ratio: length / base,
        accuracy_of_runs: [
            of_runs.iter().copied().fold(f64::INFINITY, f64::min),
            of_runs.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ],
        cut: cut as f64 / (runs.len() * count).max(1) as f64,
        sources: names.iter().map(|name| ((*name).clone(), of_source(name))).collect(),
        readings: names.iter().map(|name| ((*name).clone(), reading(name))).collect(),
        all_right_std: (!spreads.is_empty()).then(|| mean(&spreads)),
        entropy: entropies(|curve| curve.first())
            .zip(entropies(|curve| curve.last()))
            .map(|(first, last)| [first, last]),
    }
}

/// Return the mean of `right` (`[runs, problems]`) and its 95% interval by Student's t. Runs (seeds) and problems are
/// both samples, and their variances add up. A single run has only the variance over problems.
fn estimate(right: &[Vec<f64>]) -> Estimate {
    let (runs, problems) = means(right);
    let value = mean(&runs);
    let interval = (problems.len() > 1).then(|| {
        let [low, high] = student::interval(value, &parts(&[&runs, &problems]));
        [low.max(0.0), high.min(1.0)]
    });
    Estimate { value, interval }
}

/// Return the accuracy of `of` minus that of `other`, paired by problem but not by seed: equal seeds only share the
/// order of problems. The interval is limited to −1 to 1. `None` without runs or if the problems differ; no interval if
/// a side has a single run.
fn difference(of: &[&Sources], other: &[&Sources]) -> Option<Estimate> {
    let (of, other) = (right(of), right(other));
    if of.is_empty() || of.first().map(Vec::len) != other.first().map(Vec::len) {
        return None;
    }
    let ((runs, problems), (other_runs, other_problems)) = (means(&of), means(&other));
    let value = mean(&runs) - mean(&other_runs);
    let paired: Vec<f64> = problems.iter().zip(other_problems).map(|(a, b)| a - b).collect();
    let several = runs.len().min(other_runs.len()).min(paired.len()) > 1;
    let interval = several.then(|| student::interval(value, &parts(&[&runs, &other_runs, &paired])));
    Some(Estimate { value, interval: interval.map(|bounds| bounds.map(|bound| bound.clamp(-1.0, 1.0))) })
}

/// Return the means of `right` (`[runs, problems]`) by run and by problem.
fn means(right: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
    let problems = right.first().map_or(0, Vec::len);
    let of_problem = |problem: usize| mean(&right.iter().map(|run| run[problem]).collect::<Vec<_>>());
    (right.iter().map(|run| mean(run)).collect(), (0..problems).map(of_problem).collect())
}

/// Return the variance of the mean and its degrees of freedom, for each list with more than one value.
fn parts(lists: &[&[f64]]) -> Vec<(f64, f64)> {
    let several = lists.iter().filter(|list| list.len() > 1);
    several.map(|list| (deviation(list).powi(2) / list.len() as f64, list.len() as f64 - 1.0)).collect()
}
