//! The operations on Burn's `flex` CPU backend: one multi-threaded pass over memory each, with a hand-written backward.
//!
//! [`kernels`] and [`attention`] are plain functions on slices; this file connects them to Burn through its
//! backend-extension mechanism. Each operation has a `Flex` form here (the value) and an `Autodiff<Flex>` form in
//! [`autodiff`] (the value and a backward step that recomputes what it can instead of storing it).

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]

mod attention;
mod autodiff;
mod convolution;
mod delta;
mod few_rows;
mod kernels;
mod product;
mod rows;
mod scores;
mod update;

/// The values of a contiguous tensor as a slice.
macro_rules! values {
    ($tensor:expr) => {
        values!($tensor, f32)
    };
    ($tensor:expr, $element:ty) => {{
        let tensor = $tensor;
        let (start, end) =
            (tensor.layout().start_offset(), tensor.layout().start_offset() + tensor.shape().num_elements());
        &tensor.storage::<$element>()[start..end]
    }};
}

/// The values of a contiguous tensor as a mutable slice; copies the storage first if it is shared.
macro_rules! values_mut {
    ($tensor:expr, $element:ty) => {{
        let tensor = $tensor;
        let (start, end) =
            (tensor.layout().start_offset(), tensor.layout().start_offset() + tensor.shape().num_elements());
        &mut tensor.storage_mut::<$element>()[start..end]
    }};
}

use {values, values_mut};

pub(crate) mod host {
    pub(crate) use super::kernels::{Softmax, exp, softmax};
}

use std::cell::Cell;
use std::sync::Arc;

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;

use self::product::{Matrix, product};
use super::{RowScores, Span};
pub(super) use convolution::causal_conv;
pub(super) use delta::{delta_rule, delta_rule_cached};
#[cfg(test)]
pub(super) use update::address;
pub(super) use update::{accumulate, adamw, add_rows, sum_of_squares};

type Primitive = FloatTensor<Flex>;

thread_local! {
    /// Whether this thread uses the reference compositions of tensor operations on this device too.
    static PLAIN_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// Whether `device` is the `flex` CPU device and this thread uses its fused operations.
pub(super) fn serves(device: &Device) -> bool {
    static FLEX: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    !PLAIN_ONLY.get() && device.clone().inner() == *FLEX.get_or_init(Device::flex)
}

/// Run `compute` with the fused operations of this thread switched off.
pub(super) fn plainly<T>(compute: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLAIN_ONLY.set(self.0);
        }
    }
    let _restore = Restore(PLAIN_ONLY.replace(true));
    compute()
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait CpuOps: Backend {
    fn op_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn op_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Vec<usize>,
        window: Option<usize>,
    ) -> FloatTensor<Self>;
    fn op_attention_cached(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        spans: Arc<[Span]>,
    ) -> FloatTensor<Self>;
    fn op_write_rows(table: FloatTensor<Self>, rows: FloatTensor<Self>, at: Vec<usize>) -> FloatTensor<Self>;
    fn op_matmul_transposed(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;
    fn op_swiglu_linear(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn op_seed(x: FloatTensor<Self>, upstream: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self>;
}

pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let out = <Dispatch as CpuOps>::op_rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon as f32);
    Tensor::from_dispatch(out)
}

pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_swiglu(gate.into_dispatch(), up.into_dispatch()))
}

pub(super) fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_geglu(gate.into_dispatch(), up.into_dispatch()))
}

pub(super) fn rotary(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let out = <Dispatch as CpuOps>::op_rotary(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(out)
}

pub(super) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    lengths: &[usize],
    window: Option<usize>,
) -> Tensor<2> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_attention(q, k, v, lengths.to_vec(), window))
}

pub(super) fn attention_cached(q: Tensor<3>, keys: Tensor<2>, values: Tensor<2>, spans: &Arc<[Span]>) -> Tensor<2> {
    let (q, keys, values) = (q.into_dispatch(), keys.into_dispatch(), values.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_attention_cached(q, keys, values, Arc::clone(spans)))
}

pub(super) fn write_rows(table: Tensor<2>, rows: Tensor<2>, at: &[usize]) -> Tensor<2> {
    let (table, rows) = (table.into_dispatch(), rows.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_write_rows(table, rows, at.to_vec()))
}

pub(super) fn matmul_transposed(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_matmul_transposed(x.into_dispatch(), weight.into_dispatch()))
}

/// `x W + b`; an empty `bias` means none.
pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_linear(x, weight, bias.into_dispatch()))
}

/// `x W + b + scale (x A) B`; an empty `bias` means none. No autodiff.
pub(super) fn adapted_linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    factors: [Tensor<2>; 2],
    scale: f32,
) -> Tensor<2> {
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    let [a, b] = factors.map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_adapted_linear(x, weight, bias, a, b, scale))
}

/// `(silu(gate) · up) W + b`; an empty `bias` means none.
pub(super) fn swiglu_linear(gate: Tensor<2>, up: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    let (weight, bias) = (weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_swiglu_linear(gate, up, weight, bias))
}

pub(super) fn seed(x: Tensor<2>, upstream: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_seed(x.into_dispatch(), upstream.into_dispatch()))
}

pub(super) fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> RowScores {
    let statistics = <Dispatch as CpuOps>::op_scores(logits.into_dispatch(), targets.to_vec(), temperature);
    RowScores::of(Tensor::from_dispatch(statistics))
}

/// View a contiguous two-dimensional tensor in f32 or bf16 as a matrix.
fn matrix(tensor: &Primitive) -> Matrix<'_> {
    let [rows, columns] = dims(tensor);
    match tensor.dtype() {
        DType::BF16 => Matrix::new(values!(tensor, bf16), rows, columns),
        _ => Matrix::new(values!(tensor), rows, columns),
    }
}

fn dims<const D: usize>(tensor: &Primitive) -> [usize; D] {
    tensor.shape().dims()
}

fn tensor(values: Vec<f32>, shape: impl Into<burn::tensor::Shape>) -> Primitive {
    Flex::float_from_data(TensorData::new(values, shape), &Default::default())
}

impl CpuOps for Flex {
    fn op_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        tensor(kernels::rms_norm(values!(&x), values!(&weight), epsilon), x.shape())
    }

    fn op_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        tensor(kernels::gated::<kernels::Silu>(values!(&gate), values!(&up)), gate.shape())
    }

    fn op_geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        tensor(kernels::gated::<kernels::Gelu>(values!(&gate), values!(&up)), gate.shape())
    }

    fn op_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, cos, sin) = (x.to_contiguous(), cos.to_contiguous(), sin.to_contiguous());
        let [_, heads, dim] = dims(&x);
        tensor(kernels::rotary(values!(&x), [values!(&cos), values!(&sin)], heads, dim / 2, 1.0), x.shape())
    }

    fn op_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Vec<usize>,
        window: Option<usize>,
    ) -> FloatTensor<Self> {
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        let shape = attention::AttentionShape::of(dims(&q), k.shape()[1], window);
        let out = attention::forward(values!(&q), values!(&k), values!(&v), &lengths, shape);
        let [rows, heads, dim] = dims(&q);
        tensor(out, [rows, heads * dim])
    }

    fn op_attention_cached(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        spans: Arc<[Span]>,
    ) -> FloatTensor<Self> {
        let (q, keys, values) = (q.to_contiguous(), keys.to_contiguous(), values.to_contiguous());
        let [rows, heads, dim] = dims(&q);
        let shape = attention::AttentionShape::of([rows, heads, dim], keys.shape()[1] / dim, None);
        let mixed = match keys.dtype() {
            DType::BF16 => attention::cached(values!(&q), values!(&keys, bf16), values!(&values, bf16), &spans, shape),
            _ => attention::cached(values!(&q), values!(&keys), values!(&values), &spans, shape),
        };
        tensor(mixed, [rows, heads * dim])
    }

    fn op_write_rows(mut table: FloatTensor<Self>, rows: FloatTensor<Self>, at: Vec<usize>) -> FloatTensor<Self> {
        let rows = rows.to_contiguous();
        let [_, width] = dims(&rows);
        assert!(table.is_contiguous() && table.layout().start_offset() == 0, "a cache table is never a view");
        let rows = values!(&rows).chunks_exact(width).zip(at);
        if table.dtype() == DType::BF16 {
            let storage = table.storage_mut::<bf16>();
            for (row, at) in rows {
                let place = &mut storage[at * width..(at + 1) * width];
                place.iter_mut().zip(row).for_each(|(place, &x)| *place = bf16::from_f32(x));
            }
        } else {
            let storage = table.storage_mut::<f32>();
            rows.for_each(|(row, at)| storage[at * width..(at + 1) * width].copy_from_slice(row));
        }
        table
    }

    fn op_matmul_transposed(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let ([rows, _], [vocab, _]) = (dims(&x), dims(&weight));
        tensor(product(matrix(&x), matrix(&weight).transposed()), [rows, vocab])
    }

    fn op_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let ([rows, _], [_, width]) = (dims(&x), dims(&weight));
        let mut out = kernels::repeat(values!(&bias), rows, width);
        product::multiply(matrix(&x), matrix(&weight), &mut out, bias.shape()[0] > 0);
        tensor(out, [rows, width])
    }

    fn op_adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let (x, a, b) = (x.to_contiguous(), a.to_contiguous(), b.to_contiguous());
        let ([rows, _], [_, rank]) = (dims(&x), dims(&a));
        let mut low = product(matrix(&x), matrix(&a));
        low.iter_mut().for_each(|low| *low *= scale);
        let mut out = Self::op_linear(x, weight, bias);
        product::multiply(Matrix::new(&low[..], rows, rank), matrix(&b), values_mut!(&mut out, f32), true);
        out
    }

    fn op_swiglu_linear(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::op_linear(Self::op_swiglu(gate, up), weight, bias)
    }

    fn op_seed(_x: FloatTensor<Self>, _upstream: FloatTensor<Self>) -> FloatTensor<Self> {
        tensor(vec![0.0], [1])
    }

    fn op_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self> {
        let logits = logits.to_contiguous();
        let (statistics, _) = scores::forward(values!(&logits), &targets, temperature);
        tensor(statistics, [scores::STATISTICS, targets.len()])
    }
}
