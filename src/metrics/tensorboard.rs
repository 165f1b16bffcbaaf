//! Event files for TensorBoard: TensorFlow records, each an `Event` of TensorFlow's `event.proto`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::Metrics;
use crate::error::{Error, Result};
use crate::files;

/// Number of buckets of a histogram.
const BUCKETS: usize = 30;
/// `DT_STRING` of TensorFlow's `types.proto`.
const STRING: i32 = 7;
/// `START` of `SessionLog.SessionStatus`.
const START: i32 = 1;

/// An event file of a run.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
    stage: Option<String>,
}

impl EventFile {
    /// Create a file in `dir`. If a run resumes after `step`, TensorBoard drops the later steps of earlier files.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create(dir: &Path, step: Option<usize>) -> Result<Self> {
        files::create_dir(dir)?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        // TensorBoard reads the files of a folder in the order of their names. Two starts within a second differ by
        // number, which sorts in the order of time.
        let mut number = 0;
        let (path, file) = loop {
            let path = dir.join(format!("events.out.tfevents.{seconds}.{number}.tempering"));
            match File::create_new(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(Error::io(&path)(error)),
            }
        };
        let mut events = Self { path, file, stage: None };
        events.write(0, EventContent::FileVersion("brain.Event:2".to_string()))?;
        if let Some(step) = step {
            events.write(step as i64 + 1, EventContent::SessionLog(SessionLog { status: START }))?;
        }
        Ok(events)
    }

    /// Write the numbers of a step as scalars, and the name of its stage as a text if it changes. Lists stay in
    /// `metrics.jsonl`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn scalars(&mut self, metrics: &Metrics) -> Result<()> {
        let numbers = metrics.values().iter().filter(|(name, _)| *name != "step");
        let mut value: Vec<Item> = numbers
            .filter_map(|(name, value)| Some(Item::new(tag(name), ItemContent::Simple(value.as_f64()? as f32))))
            .collect();
        if let Some(stage) = metrics.text("stage")
            && self.stage.as_deref() != Some(stage)
        {
            value.push(Item::text("train/stage", vec![stage.to_string()]));
            self.stage = Some(stage.to_string());
        }
        self.write(step(metrics), EventContent::Summary(Summary { value }))
    }

    /// Write a histogram of the `values` of a step, without those that are not finite; the metrics count these.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn histogram(&mut self, step: usize, name: &str, values: &[f64]) -> Result<()> {
        let Some(histogram) = Histogram::of(values) else { return Ok(()) };
        let value = vec![Item::new(tag(name), ItemContent::Histogram(histogram))];
        self.write(step as i64, EventContent::Summary(Summary { value }))
    }

    /// Write texts, one below the other.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn texts(&mut self, step: usize, name: &str, texts: Vec<String>) -> Result<()> {
        let value = vec![Item::text(&tag(name), texts)];
        self.write(step as i64, EventContent::Summary(Summary { value }))
    }

    /// Append a record in one write, so that a killed process leaves at most one truncated record, which TensorBoard
    /// treats as the end.
    fn write(&mut self, step: i64, what: EventContent) -> Result<()> {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
        let event = Event { wall_time, step, what: Some(what) }.encode_to_vec();
        self.file.write_all(&record(&event)).map_err(Error::io(&self.path))
    }
}

/// Return a metric's name in TensorBoard, as in Hugging Face's trainers: `train/` before names outside `eval/`.
/// Figures of the conflict have their own group.
fn tag(name: &str) -> String {
    if name.starts_with("eval/") || name.starts_with("conflict/") { name.to_string() } else { format!("train/{name}") }
}

fn step(metrics: &Metrics) -> i64 {
    metrics.get("step").unwrap_or_default() as i64
}

/// Encode a record: its length and the checksum of the length, the data and its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), data, &checksum(data)].concat()
}

/// Compute the CRC-32C checksum, masked as in TensorFlow's records.
fn checksum(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "EventContent", tags = "3, 5, 7")]
    what: Option<EventContent>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum EventContent {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Item>,
}

/// `Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "ItemContent", tags = "2, 5, 8")]
    content: Option<ItemContent>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ItemContent {
    #[prost(float, tag = "2")]
    Simple(f32),
    #[prost(message, tag = "5")]
    Histogram(Histogram),
    #[prost(message, tag = "8")]
    Tensor(Texts),
}

/// `SummaryMetadata`.
#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<Plugin>,
}

#[derive(Clone, PartialEq, Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

/// `TensorProto` of texts.
#[derive(Clone, PartialEq, Message)]
struct Texts {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, tag = "1")]
    size: i64,
}

/// `HistogramProto`.
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(double, tag = "1")]
    min: f64,
    #[prost(double, tag = "2")]
    max: f64,
    #[prost(double, tag = "3")]
    num: f64,
    #[prost(double, tag = "4")]
    sum: f64,
    #[prost(double, tag = "5")]
    sum_squares: f64,
    /// Upper ends of the buckets.
    #[prost(double, repeated, tag = "6")]
    bucket_limit: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    bucket: Vec<f64>,
}

impl Item {
    fn new(tag: String, content: ItemContent) -> Self {
        Self { tag, content: Some(content), metadata: None }
    }

    fn text(tag: &str, texts: Vec<String>) -> Self {
        let shape = Some(TensorShape { dim: vec![Dim { size: texts.len() as i64 }] });
        let string_val = texts.into_iter().map(String::into_bytes).collect();
        let plugin_data = Some(Plugin { plugin_name: "text".to_string() });
        Self {
            tag: tag.to_string(),
            content: Some(ItemContent::Tensor(Texts { dtype: STRING, shape, string_val })),
            metadata: Some(Metadata { plugin_data }),
        }
    }
}

impl Histogram {
    /// Compute a histogram with buckets of equal width; `None` without a finite value.
    fn of(values: &[f64]) -> Option<Self> {
        let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        let min = values.iter().copied().reduce(f64::min)?;
        let max = values.iter().copied().reduce(f64::max)?;
        let width = ((max - min) / BUCKETS as f64).max(f64::MIN_POSITIVE);
        let mut bucket = vec![0.0; BUCKETS];
        for value in &values {
            bucket[(((value - min) / width) as usize).min(BUCKETS - 1)] += 1.0;
        }
        let bucket_limit = (1..=BUCKETS).map(|at| if at == BUCKETS { max } else { min + width * at as f64 }).collect();
        Some(Self {
            min,
            max,
            num: values.len() as f64,
            sum: values.iter().sum(),
            sum_squares: values.iter().map(|value| value * value).sum(),
            bucket_limit,
            bucket,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4: CRC-32C of 32 bytes of zeros is 8a9136aa; masked by hand.
    #[test]
    fn records_have_masked_checksums() {
        let record = record(&[0; 32]);
        assert_eq!((record.len(), &record[44..]), (8 + 4 + 32 + 4, &0x0fd7_fffa_u32.to_le_bytes()[..]));
        assert_eq!(record[..8], [32, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_histogram_has_every_value_once() {
        let histogram = Histogram::of(&[0.0, 1.0, 3.0, f64::NAN, 3.0]).unwrap();
        assert_eq!((histogram.num, histogram.sum, histogram.sum_squares), (4.0, 7.0, 19.0));
        assert_eq!((histogram.bucket[0], histogram.bucket[10], histogram.bucket[29]), (1.0, 1.0, 2.0));
        assert_eq!(histogram.bucket_limit[29], 3.0);
        let equal = Histogram::of(&[2.0; 5]).unwrap();
        assert_eq!(equal.bucket.iter().sum::<f64>(), 5.0);
        assert!(Histogram::of(&[f64::NAN]).is_none());
    }

    /// Name, plugin and bytes of a text, by the field numbers of TensorFlow's `.proto` files.
    #[test]
    fn a_text_is_what_the_text_plugin_reads() {
        let event = Event {
            wall_time: 0.0,
            step: 3,
            what: Some(EventContent::Summary(Summary { value: vec![Item::text("a", vec!["hi".into()])] })),
        };
        let tensor = [8, 7, 18, 4, 18, 2, 8, 1, 66, 2, b'h', b'i'];
        let metadata = [&[10, 6, 10, 4][..], b"text"].concat();
        let item = [&[10, 1, b'a', 66, 12][..], &tensor, &[74, 8], &metadata].concat();
        let bytes = [&[16, 3, 42, item.len() as u8 + 2, 10, item.len() as u8][..], &item].concat();
        assert_eq!(event.encode_to_vec(), bytes);
    }

    #[test]
    fn names_are_those_of_hugging_face() {
        assert_eq!(
            ["loss", "eval/accuracy", "conflict/cosine"].map(tag),
            ["train/loss", "eval/accuracy", "conflict/cosine"]
        );
    }
}
