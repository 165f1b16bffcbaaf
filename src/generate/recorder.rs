//! Recorded decoding steps (CUDA graphs), by number of rows.

use burn::tensor::{Int, Tensor};

use crate::ops::Repeated;

/// Passes of the same number of rows in a row before that number is recorded.
const SETTLED: usize = 3;
/// Passes that must be left for a recording to pay: recording takes three.
const WORTH: usize = 8;

/// Recordings of the passes of [`super::engine`] over several tokens, and the decision when to record.
#[derive(Debug)]
pub(super) struct Recorder {
    /// Whether the device can record, as far as is known.
    able: bool,
    /// Number of rows of the latest passes, and the number of passes in a row with it.
    latest: (usize, usize),
    recordings: Vec<(usize, Repeated)>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { able: true, latest: (0, 0), recordings: Vec::new() }
    }

    fn recording(&self, rows: usize) -> Option<&Repeated> {
        self.recordings.iter().find(|(count, _)| *count == rows).map(|(_, recording)| recording)
    }

    /// Count a pass of `rows` rows. Return whether it is time to record it, with `passes_left` passes to come.
    pub(super) fn is_due(&mut self, rows: usize, passes_left: usize) -> bool {
        if self.recording(rows).is_some() {
            return false;
        }
        self.latest = if self.latest.0 == rows { (rows, self.latest.1 + 1) } else { (rows, 1) };
        self.able && self.latest.1 >= SETTLED && passes_left >= WORTH
    }

    /// Keep a recording of a pass of `rows` rows. After a failure nothing is recorded any more.
    pub(super) fn add(&mut self, rows: usize, recording: Result<Repeated, String>) {
        match recording {
            Ok(recording) => self.recordings.push((rows, recording)),
            Err(reason) => {
                tracing::debug!("decoding is not recorded: {reason}");
                self.able = false;
            }
        }
    }

    /// Replay the recording of as many rows as `uniforms` has, if there is one.
    ///
    /// # Panics
    /// When the driver refuses the replay.
    pub(super) fn replay(
        &self,
        tokens: &Tensor<1, Int>,
        uniforms: &Tensor<2>,
        states: Tensor<2, Int>,
    ) -> Option<Tensor<2>> {
        let recording = self.recording(uniforms.dims()[0])?;
        match recording.replay(tokens.clone(), uniforms.clone(), states) {
            Ok(numbers) => Some(numbers),
            Err(reason) => panic!("a recorded step of decoding cannot be replayed: {reason}"),
        }
    }
}
