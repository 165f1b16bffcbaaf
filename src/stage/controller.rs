//! The closed loop: chooses between two stages by measurements.

use serde::{Deserialize, Serialize};

use super::exit::mean;
use super::{Stage, StepFigures};
use crate::config::{self, STEPS};

/// Chooses after every step whether to compress or to enhance, by measurements instead of a fixed schedule.
///
/// It leaves *compress* in any of four cases. Accuracy has fallen below its best by more than `accuracy_drop`. The mean
/// length of the last window is not below that of the window before by the share `length_tolerance`. Entropy is below
/// `entropy_low`, which leaves nothing to explore with. The two parts of advantages spend more than `cancelled_high` of
/// their effort against each other. It returns to *compress* when accuracy is within half of `accuracy_drop` of its
/// best and entropy is at least `entropy_low`; the half is the hysteresis. This controller is ours, not the paper's.
///
/// The two stages differ in temperature and length clip, which changes the accuracy of the same model. So the best
/// accuracy is shifted when the stage changes: after the first window of the new stage, accuracy is as far below its
/// best as it was before the change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controller {
    /// Name of the stage that shortens completions.
    #[serde(default = "compress")]
    pub compress: String,
    /// Name of the stage that improves accuracy.
    #[serde(default = "enhance")]
    pub enhance: String,
    /// Number of steps of the whole run; the `exit` settings of the stages are ignored.
    pub max_steps: usize,
    /// Minimum number of steps in a stage before a switch.
    #[serde(default = "twenty")]
    pub min_steps: usize,
    /// Number of steps over which metrics are averaged.
    #[serde(default = "ten")]
    pub window: usize,
    /// Decrease of accuracy below its best value, as a fraction of all completions, that ends `compress`. It resumes
    /// when accuracy is within half of this of its best.
    #[serde(default = "tenth")]
    pub accuracy_drop: f64,
    /// Minimum relative decrease of the length from one window to the next for `compress` to continue; not set for no
    /// minimum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_tolerance: Option<f64>,
    /// Entropy at temperature 1, in nats per token, below which `compress` ends and does not resume; 0 disables.
    #[serde(default)]
    pub entropy_low: f64,
    /// Value of the metric `conflict/cancellation` above which `compress` ends, because the task and length parts of
    /// advantages are in conflict; 1 disables.
    #[serde(default = "whole")]
    pub cancelled_high: f64,
}

fn ten() -> usize {
    10
}

fn compress() -> String {
    "compress".to_string()
}

fn enhance() -> String {
    "enhance".to_string()
}

fn twenty() -> usize {
    20
}

fn tenth() -> f64 {
    0.1
}

fn whole() -> f64 {
    1.0
}

impl Controller {
    /// Return why the stage changes after a step; `None` if it does not. `compressing` tells which of the stages it is,
    /// `history` has its steps since it began, and `best` is the best windowed accuracy so far under its sampling.
    pub fn switch(&self, compressing: bool, history: &[StepFigures], best: f64) -> Option<String> {
        let last = self.recent(history).filter(|_| history.len() >= self.min_steps)?;
        let accuracy = mean(last, |step| step.accuracy);
        let entropy = mean(last, |step| step.entropy);
        let measured: Vec<f64> = last.iter().filter_map(|step| step.cancelled).collect();
        let cancelled = measured.iter().sum::<f64>() / measured.len().max(1) as f64;
        if !compressing {
            let back = accuracy >= best - self.accuracy_drop / 2.0 && entropy >= self.entropy_low;
            return back.then(|| format!("accuracy {accuracy:.3} is near its best, {best:.3}"));
        }
        if accuracy < best - self.accuracy_drop {
            return Some(format!("accuracy {accuracy:.3} has fallen from {best:.3}"));
        }
        if let Some(tolerance) = self.length_tolerance
            && history.len() >= 2 * self.window
        {
            let length = |steps: &[StepFigures]| mean(steps, |step| step.length);
            let before = length(&history[history.len() - 2 * self.window..][..self.window]);
            if length(last) > before * (1.0 - tolerance) {
                return Some(format!("length {:.0} is no longer falling", length(last)));
            }
        }
        if entropy < self.entropy_low {
            return Some(format!("entropy {entropy:.4} is below {}", self.entropy_low));
        }
        (cancelled > self.cancelled_high).then(|| format!("{:.0}% of the gradient effort cancels", 100.0 * cancelled))
    }

    /// Return the mean accuracy of the last window; `None` with fewer steps than a window.
    pub fn accuracy(&self, history: &[StepFigures]) -> Option<f64> {
        self.recent(history).map(|last| mean(last, |step| step.accuracy))
    }

    fn recent<'a>(&self, history: &'a [StepFigures]) -> Option<&'a [StepFigures]> {
        history.len().checked_sub(self.window).map(|first| &history[first..])
    }

    /// Return the index of the compressing or the enhancing stage.
    ///
    /// # Panics
    /// If no stage has the name, which [`Controller::mistakes`] reports.
    pub fn stage(&self, stages: &[Stage], compressing: bool) -> usize {
        let name = if compressing { &self.compress } else { &self.enhance };
        stages.iter().position(|stage| stage.name == *name).expect("names are checked when settings are read")
    }

    /// Return the mistakes in these settings, one line each.
    pub fn mistakes(&self, stages: &[Stage], cycles: usize) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |ok: bool, what: String| {
            if !ok {
                problems.push(format!("controller.{what}"));
            }
        };
        for (key, name) in [("compress", &self.compress), ("enhance", &self.enhance)] {
            let known: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
            let message = format!("{key} = {name:?} is not a stage; choose from {}", known.join(", "));
            require(known.contains(&name.as_str()), message);
        }
        require(self.compress != self.enhance, "compress and enhance name the same stage: name two stages".to_string());
        let names = [&self.compress, &self.enhance];
        let is_stage = |name: &String| stages.iter().any(|stage| stage.name == *name);
        for (index, stage) in stages.iter().enumerate().filter(|_| names.into_iter().all(is_stage)) {
            let first = stages.iter().position(|other| other.name == stage.name);
            let is_used = names.contains(&&stage.name) && first == Some(index);
            require(
                is_used,
                format!(
                    "compress and enhance do not name stages.{index}, {:?}, which would not be used: remove it",
                    stage.name
                ),
            );
        }
        for (key, value) in [("max_steps", self.max_steps), ("window", self.window), ("min_steps", self.min_steps)] {
            config::count(key, value, 1, STEPS).into_iter().for_each(|mistake| require(false, mistake));
        }
        for (index, stage) in stages.iter().enumerate() {
            let acts = stage.exit.plateau.is_none() && stage.exit.length_target.is_none();
            require(
                acts,
                format!(
                    "max_steps ends the run, so stages.{index}.exit must not set plateau or length_target: remove them"
                ),
            );
        }
        let (drop, low, high) = (self.accuracy_drop, self.entropy_low, self.cancelled_high);
        require((0.0..=1.0).contains(&drop), format!("accuracy_drop = {drop} must be between 0 and 1"));
        if let Some(tolerance) = self.length_tolerance {
            require(
                (0.0..1.0).contains(&tolerance),
                format!("length_tolerance = {tolerance} must be at least 0 and below 1"),
            );
        }
        require(low >= 0.0 && low.is_finite(), format!("entropy_low = {low} must not be negative"));
        require((0.0..=1.0).contains(&high), format!("cancelled_high = {high} must be between 0 and 1"));
        require(cycles == 1, "max_steps ends the run, so cycles has no effect: remove it".to_string());
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lengths: impl IntoIterator<Item = f64>) -> Vec<StepFigures> {
        let step = |length| StepFigures { length, entropy: 0.3, accuracy: 0.8, cancelled: None };
        lengths.into_iter().map(step).collect()
    }

    fn controller() -> Controller {
        Controller {
            compress: "c".to_string(),
            enhance: "e".to_string(),
            max_steps: 100,
            min_steps: 4,
            window: 2,
            accuracy_drop: 0.1,
            length_tolerance: None,
            entropy_low: 0.05,
            cancelled_high: 0.4,
        }
    }

    #[test]
    fn the_controller_stays_put_before_its_minimum_and_switches_for_each_reason() {
        let step = StepFigures { length: 50.0, entropy: 0.2, accuracy: 0.8, cancelled: Some(0.1) };
        let stay = |step: StepFigures, steps: usize| vec![step; steps];
        let switch = |compressing, step, steps| controller().switch(compressing, &stay(step, steps), 0.85);
        assert_eq!(switch(true, step, 10), None);
        let worse = StepFigures { accuracy: 0.7, ..step };
        assert_eq!(switch(true, worse, 3), None, "before its minimum");
        assert!(switch(true, worse, 4).unwrap().contains("accuracy"));
        assert!(switch(true, StepFigures { entropy: 0.01, ..step }, 4).unwrap().contains("entropy"));
        assert!(switch(true, StepFigures { cancelled: Some(0.5), ..step }, 4).unwrap().contains("cancels"));
        assert_eq!(
            switch(true, StepFigures { cancelled: None, ..step }, 4),
            None,
            "what was not measured is no reason"
        );
        // The way back: 0.8 is within half the drop of 0.85, 0.79 is not.
        assert!(switch(false, step, 4).is_some());
        assert_eq!(switch(false, StepFigures { accuracy: 0.79, ..step }, 9), None);
        assert_eq!(switch(false, StepFigures { entropy: 0.01, ..step }, 9), None);
    }

    /// Two windows of two steps: from 100 to 96 tokens is a fall of less than 5%, from 100 to 94 of more.
    #[test]
    fn the_controller_leaves_compress_when_lengths_stop_falling() {
        let controller = Controller { length_tolerance: Some(0.05), ..controller() };
        let switch = |compressing, last| controller.switch(compressing, &history([100.0, 100.0, last, last]), 0.8);
        assert_eq!(switch(true, 94.0), None);
        assert_eq!(switch(true, 96.0).unwrap(), "length 96 is no longer falling");
    }
}
