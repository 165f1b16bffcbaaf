//! Benchmark of the matrix-product routines on the shapes of a model, and the routine that the selection rule takes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use burn::backend::Cube;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use serde::Serialize;

use crate::model::{ModelConfig, Precision};
use crate::ops::gpu::product::{ProductSpec, launch, ran, routines, transposed};
use crate::ops::gpu::routine::Routine;

/// Rows decoded together.
const DECODED: usize = 64;
/// Tokens of a micro-batch.
const TOKENS: usize = 8192;
/// Rows of a micro-batch for which the head computes logits.
const HEAD_ROWS: usize = 2048;
/// Rows of a result that are compared with the reference.
const COMPARED: usize = 16;
/// Maximum number of timed launches of a routine, and approximate time limit for them.
const MAX_LAUNCHES: usize = 10;
const TIME_LIMIT: Duration = Duration::from_millis(40);

/// Set of shapes to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Shapes {
    /// Shapes of decoding 64 rows.
    Decode,
    /// Shapes of a micro-batch of 8192 tokens, forward and backward.
    Train,
    /// Both.
    All,
}

/// Selection of shapes, precision and routines to time.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// Shapes to time.
    pub shapes: Shapes,
    /// Precision of the products.
    pub precision: Precision,
    /// Prefixes of routine names; all routines if empty. The rule's choice is always timed.
    pub routines: &'a [String],
}

/// Time of a routine on a shape.
#[derive(Debug, Clone, Serialize)]
pub struct RoutineTime {
    /// Name of the routine.
    pub routine: String,
    /// Mean time of a launch in microseconds; `None` if the routine failed.
    pub us: Option<f64>,
    /// Speed in 10^12 floating-point operations per second.
    pub tflops: Option<f64>,
    /// Time of the first launch, including compilation, in milliseconds.
    pub first_ms: f64,
    /// Reason of a failure.
    pub failure: Option<String>,
}

/// Times of all routines on a shape.
#[derive(Debug, Clone, Serialize)]
pub struct ProductTimes {
    /// Role of the product in the model.
    pub name: String,
    /// Size of the product: `[m, k] x [k, n]`.
    pub mnk: [usize; 3],
    /// First routine in the rule's order that works.
    pub rule: Option<String>,
    /// Times, fastest first.
    pub routines: Vec<RoutineTime>,
}

#[derive(Debug, Clone)]
struct ProductShape {
    name: String,
    mnk: [usize; 3],
    /// Whether the left and the right operand are stored transposed.
    is_transposed: [bool; 2],
}

/// Return the products of a decoding step and of a micro-batch, without duplicates.
fn shapes(config: &ModelConfig, which: Shapes) -> Vec<ProductShape> {
    let (hidden, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim());
    let (queries, keys) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
    let mut all: Vec<ProductShape> = Vec::new();
    let mut add = |name: String, mnk: [usize; 3], is_transposed: [bool; 2]| {
        if !all.iter().any(|known| known.mnk == mnk && known.is_transposed == is_transposed) {
            all.push(ProductShape { name, mnk, is_transposed });
        }
    };
    // Name, input width and output width of each matrix.
    let matrices = [
        ("q", hidden, queries),
        ("k, v", hidden, keys),
        ("o", queries, hidden),
        ("gate, up", hidden, inner),
        ("down", inner, hidden),
    ];
    let (head, tied) = (config.vocab_size, config.tie_word_embeddings);
    if which != Shapes::Train {
        for (name, input, output) in matrices {
            add(format!("decode {name}"), [DECODED, output, input], [false, false]);
        }
        add("decode head".to_string(), [DECODED, head, hidden], [false, tied]);
    }
    if which != Shapes::Decode {
        for (name, input, output) in matrices {
            add(format!("train {name}"), [TOKENS, output, input], [false, false]);
            add(format!("train {name}, dx"), [TOKENS, input, output], [false, true]);
            add(format!("train {name}, dW"), [input, output, TOKENS], [true, false]);
        }
        add("train head".to_string(), [HEAD_ROWS, head, hidden], [false, tied]);
        add("train head, dx".to_string(), [HEAD_ROWS, hidden, head], [false, !tied]);
        let [m, n] = if tied { [head, hidden] } else { [hidden, head] };
        add("train head, dW".to_string(), [m, n, HEAD_ROWS], [true, false]);
    }
    all
}

/// Time the routines on the shapes of a model, one shape per iteration, for at most `longest`.
pub fn products(
    config: &ModelConfig,
    chosen: Chosen<'_>,
    device: &Device,
    longest: Duration,
) -> impl Iterator<Item = ProductTimes> {
    let (device, end) = (device.clone(), Instant::now() + longest);
    // Most kernels are compiled for the first shapes, so no shape may take more than half of the remaining time.
    shapes(config, chosen.shapes).into_iter().map(move |shape| {
        let left = end.saturating_duration_since(Instant::now());
        times(&shape, chosen, &device, Instant::now() + left / 2)
    })
}

fn times(shape: &ProductShape, chosen: Chosen<'_>, device: &Device, end: Instant) -> ProductTimes {
    let ProductShape { name, mnk: [m, n, k], is_transposed } = shape.clone();
    let precision = chosen.precision;
    let [left, right] = [([m, k], is_transposed[0]), ([k, n], is_transposed[1])]
        .map(|(shape, is_transposed)| operand(shape, is_transposed, precision.stored(), device));
    let spec = ProductSpec::of(&left, &right, precision == Precision::Tf32);
    let order = routines(&spec);
    let expected = catch_unwind(AssertUnwindSafe(|| {
        let few = primitive(tensor(left.clone()).narrow(0, m - COMPARED.min(m), COMPARED.min(m)));
        launch(Routine::Naive, few, right.clone()).and_then(|found| ran(&found).map(|()| found))
    }));
    let expected = expected.ok().and_then(Result::ok).map(tensor);
    let is_supported = |routine: &Routine| match routine {
        Routine::FewRows => spec.few_rows,
        Routine::ScalarFewRows => spec.scalar_few_rows,
        Routine::Tiles(tiling) => spec.tilings.contains(tiling),
        Routine::Processor => spec.processor,
        // Skipped on GPUs with tensor cores: these routines are 5 to 50 times slower on an H100.
        Routine::Unit { .. } | Routine::DoubleUnit { .. } => !spec.processor && spec.cores == [None; 2],
        Routine::Gemm => spec.cores == [None; 2],
        // This routine computes the reference.
        Routine::Naive => false,
        _ => routine.cores().is_none_or(|cores| spec.cores.contains(&Some(cores))),
    };
    let mut found: Vec<(Routine, RoutineTime)> = Vec::new();
    let selected = |routine: &Routine| {
        let name = routine.to_string();
        order.first() == Some(routine)
            || chosen.routines.is_empty()
            || chosen.routines.iter().any(|start| name.starts_with(start))
    };
    for routine in Routine::ALL.into_iter().filter(is_supported).filter(selected) {
        let start = Instant::now();
        let outcome = if start >= end {
            Err("no time left".to_string())
        } else {
            timed(routine, &left, &right, expected.as_ref())
        };
        let (us, first, failure) = match outcome {
            Ok((us, first)) => (Some(us), first, None),
            Err(reason) => (None, start.elapsed(), Some(reason)),
        };
        let tflops = us.map(|us| 2.0 * (m * n * k) as f64 / us / 1e6);
        let first_ms = 1e3 * first.as_secs_f64();
        found.push((routine, RoutineTime { routine: routine.to_string(), us, tflops, first_ms, failure }));
    }
    let works = |routine: &&Routine| found.iter().any(|(tried, time)| tried == *routine && time.us.is_some());
    let rule = order.iter().find(works).map(ToString::to_string);
    let mut routines: Vec<RoutineTime> = found.into_iter().map(|(_, time)| time).collect();
    routines.sort_by(|a, b| a.us.unwrap_or(f64::INFINITY).total_cmp(&b.us.unwrap_or(f64::INFINITY)));
    ProductTimes { name, mnk: [m, n, k], rule, routines }
}

/// Return the mean time of a launch in microseconds, and the time of the first launch.
fn timed(
    routine: Routine,
    left: &CubeTensor,
    right: &CubeTensor,
    expected: Option<&Tensor<2>>,
) -> Result<(f64, Duration), String> {
    let run = || launch(routine, left.clone(), right.clone());
    let whole = || {
        let start = Instant::now();
        let found = run()?;
        ran(&found)?;
        let first = start.elapsed();
        if let Some(expected) = expected {
            agree(tensor(found), expected)?;
        }
        let start = Instant::now();
        ran(&run()?)?;
        let once = start.elapsed().max(Duration::from_micros(1));
        let launches = (TIME_LIMIT.as_secs_f64() / once.as_secs_f64()).clamp(1.0, MAX_LAUNCHES as f64) as usize;
        let start = Instant::now();
        let mut last = run()?;
        for _ in 1..launches {
            last = run()?;
        }
        ran(&last)?;
        Ok((1e6 * start.elapsed().as_secs_f64() / launches as f64, first))
    };
    catch_unwind(AssertUnwindSafe(whole)).unwrap_or_else(|panic| {
        let text =
            (panic.downcast_ref::<String>().cloned()).or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Check that the last rows of a result match the reference.
fn agree(found: Tensor<2>, expected: &Tensor<2>) -> Result<(), String> {
    let [rows, _] = expected.dims();
    let found = found.clone().narrow(0, found.dims()[0] - rows, rows);
    let largest: f32 = expected.clone().abs().max().into_scalar();
    let distance: f32 = (found - expected.clone()).abs().max().into_scalar();
    if distance <= 1e-2 * largest {
        Ok(())
    } else {
        Err(format!("wrong result: maximum error {distance:.2e} where the largest value is {largest:.2e}"))
    }
}

fn operand([rows, columns]: [usize; 2], is_transposed: bool, format: FloatDType, device: &Device) -> CubeTensor {
    let shape = if is_transposed { [columns, rows] } else { [rows, columns] };
    let operand = primitive(Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), device).cast(format));
    if is_transposed { transposed(operand) } else { operand }
}

fn primitive(tensor: Tensor<2>) -> CubeTensor {
    tensor.try_into_primitive::<Cube>().expect("a tensor of a GPU backend, without autodiff")
}

fn tensor(primitive: CubeTensor) -> Tensor<2> {
    Tensor::from_primitive::<Cube>(primitive)
}
