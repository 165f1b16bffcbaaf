//! Sums, norms and the AdamW update in place, multi-threaded.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::kernels::{GRAIN, sum_by};
use super::{tensor, values, values_mut};
use crate::ops::update::AdamWStep;

#[backend_extension(Flex)]
pub(crate) trait CpuUpdates: Backend {
    fn op_adamw(
        value: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    fn op_accumulate(sum: FloatTensor<Self>, part: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_add_rows(table: FloatTensor<Self>, rows: FloatTensor<Self>, at: Vec<u32>) -> FloatTensor<Self>;
    fn op_sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

pub(in crate::ops) fn adamw(
    value: Tensor<1>,
    [m, v]: [Tensor<1>; 2],
    gradient: Tensor<1>,
    step: AdamWStep,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let [m, v, gradient] = [m, v, gradient].map(Tensor::into_dispatch);
    let (value, m, v) = <Dispatch as CpuUpdates>::op_adamw(value.into_dispatch(), m, v, gradient, step);
    (Tensor::from_dispatch(value), [m, v].map(Tensor::from_dispatch))
}

pub(in crate::ops) fn accumulate(sum: Tensor<1>, part: Tensor<1>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as CpuUpdates>::op_accumulate(sum.into_dispatch(), part.into_dispatch()))
}

pub(in crate::ops) fn add_rows(table: Tensor<2>, rows: Tensor<2>, at: &[u32]) -> Tensor<2> {
    let (table, rows) = (table.into_dispatch(), rows.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuUpdates>::op_add_rows(table, rows, at.to_vec()))
}

pub(in crate::ops) fn sum_of_squares(x: Tensor<1>) -> f64 {
    let sum: Tensor<1> = Tensor::from_dispatch(<Dispatch as CpuUpdates>::op_sum_of_squares(x.into_dispatch()));
    f64::from(sum.into_scalar::<f32>())
}

/// Storage format of moments.
trait MomentFormat: Copy + Send + Sync {
    fn read(self) -> f32;
    fn write(x: f32) -> Self;
}

impl MomentFormat for f32 {
    fn read(self) -> f32 {
        self
    }
    fn write(x: f32) -> Self {
        x
    }
}

impl MomentFormat for bf16 {
    fn read(self) -> f32 {
        self.to_f32()
    }
    fn write(x: f32) -> Self {
        Self::from_f32(x)
    }
}

fn update<M: MomentFormat>(value: &mut [f32], m: &mut [M], v: &mut [M], gradient: &[f32], step: &AdamWStep) {
    let moments = m.par_chunks_mut(GRAIN).zip(v.par_chunks_mut(GRAIN));
    let tasks = value.par_chunks_mut(GRAIN).zip(gradient.par_chunks(GRAIN)).zip(moments);
    tasks.for_each(|((value, gradient), (m, v))| {
        for (((value, &g), m), v) in value.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * step.scale;
            let first = step.beta1.mul_add(m.read(), (1.0 - step.beta1) * g);
            let second = step.beta2.mul_add(v.read(), (1.0 - step.beta2) * g * g);
            let root = (second * step.correction).sqrt() + step.epsilon;
            *value = step.keep * *value - step.rate * first / root;
            (*m, *v) = (M::write(first), M::write(second));
        }
    });
}

impl CpuUpdates for Flex {
    fn op_adamw(
        mut value: FloatTensor<Self>,
        mut m: FloatTensor<Self>,
        mut v: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let gradient = gradient.to_contiguous();
        assert!([&value, &m, &v].iter().all(|x| x.is_contiguous()), "parameters and moments are never views");
        let weights = values_mut!(&mut value, f32);
        match m.dtype() {
            DType::BF16 => {
                let (m, v) = (values_mut!(&mut m, bf16), values_mut!(&mut v, bf16));
                update(weights, m, v, values!(&gradient), &step);
            }
            _ => update(weights, values_mut!(&mut m, f32), values_mut!(&mut v, f32), values!(&gradient), &step),
        }
        (value, m, v)
    }

    fn op_accumulate(mut sum: FloatTensor<Self>, part: FloatTensor<Self>) -> FloatTensor<Self> {
        assert!(sum.is_contiguous(), "a sum is never a view");
        let part = part.to_contiguous();
        let tasks = values_mut!(&mut sum, f32).par_chunks_mut(GRAIN).zip(values!(&part).par_chunks(GRAIN));
        tasks.for_each(|(sum, part)| sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part));
        sum
    }

    fn op_add_rows(mut table: FloatTensor<Self>, rows: FloatTensor<Self>, at: Vec<u32>) -> FloatTensor<Self> {
        assert!(table.is_contiguous(), "a table is never a view");
        let rows = rows.to_contiguous();
        let width = rows.shape()[1];
        let sums = values_mut!(&mut table, f32);
        for (row, at) in values!(&rows).chunks_exact(width).zip(at) {
            let sum = &mut sums[at as usize * width..][..width];
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        table
    }

    fn op_sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = x.to_contiguous();
        // Partial sums in a fixed order, so that the number of cores does not change the result.
        let parts: Vec<f32> = values!(&x).par_chunks(GRAIN).map(|x| sum_by(x, |x| x * x)).collect();
        tensor(vec![parts.iter().map(|&part| f64::from(part)).sum::<f64>() as f32], [1])
    }
}

#[cfg(test)]
#[backend_extension(Flex)]
pub(crate) trait CpuProbe: Backend {
    fn op_address(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[cfg(test)]
impl CpuProbe for Flex {
    fn op_address(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let address = x.bytes().as_ptr() as usize;
        tensor(vec![(address >> 24) as f32, (address & 0xFF_FFFF) as f32], [2])
    }
}

/// Return a tensor's memory address as two numbers that f32 represents exactly.
#[cfg(test)]
pub(in crate::ops) fn address<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as CpuProbe>::op_address(x.into_dispatch()))
}
