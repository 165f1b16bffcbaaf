//! Updates of gradients and weights on GPU backends, in place if the memory is not shared. No autodiff.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::kernels::update;
use super::memory::{cubes, dense, elem, elements, empty, send, units, units_for};
use crate::ops::to_host;
use crate::ops::update::AdamWStep;

/// Elements per partial sum of squares, which the host adds up: 32 KiB, so that a large GPU has enough blocks.
const CHUNK: usize = 1 << 13;

#[backend_extension(Cube)]
pub(crate) trait GpuUpdates: Backend {
    fn gpu_adamw(
        value: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    fn gpu_add_rows(table: FloatTensor<Self>, rows: FloatTensor<Self>, at: Vec<u32>) -> FloatTensor<Self>;
    fn gpu_parts(like: FloatTensor<Self>, count: usize) -> FloatTensor<Self>;
    fn gpu_sums_of_squares(x: FloatTensor<Self>, parts: FloatTensor<Self>, from: usize) -> FloatTensor<Self>;
}

pub(in crate::ops) fn adamw(
    value: Tensor<1>,
    [m, v]: [Tensor<1>; 2],
    gradient: Tensor<1>,
    step: AdamWStep,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let [m, v, gradient] = [m, v, gradient].map(Tensor::into_dispatch);
    let (value, m, v) = <Dispatch as GpuUpdates>::gpu_adamw(value.into_dispatch(), m, v, gradient, step);
    (Tensor::from_dispatch(value), [m, v].map(Tensor::from_dispatch))
}

pub(in crate::ops) fn add_rows(table: Tensor<2>, rows: Tensor<2>, at: &[u32]) -> Tensor<2> {
    let (table, rows) = (table.into_dispatch(), rows.into_dispatch());
    Tensor::from_dispatch(<Dispatch as GpuUpdates>::gpu_add_rows(table, rows, at.to_vec()))
}

/// `Σ x²` over all `tensors`: one launch per tensor, and one read for all.
pub(in crate::ops) fn sum_of_squares(tensors: &[&Tensor<1>]) -> f64 {
    let chunks: Vec<usize> = tensors.iter().map(|x| x.dims()[0].div_ceil(CHUNK)).collect();
    let Some(like) = tensors.first() else { return 0.0 };
    let mut parts = <Dispatch as GpuUpdates>::gpu_parts((*like).clone().into_dispatch(), chunks.iter().sum());
    let mut from = 0;
    for (x, count) in tensors.iter().zip(chunks) {
        parts = <Dispatch as GpuUpdates>::gpu_sums_of_squares((*x).clone().into_dispatch(), parts, from);
        from += count;
    }
    to_host(Tensor::<1>::from_dispatch(parts)).into_iter().map(f64::from).sum()
}

/// Return a contiguous tensor that is not shared, copied if necessary.
fn writable(x: CubeTensor) -> CubeTensor {
    let x = dense(x);
    if x.can_mut() { x } else { x.copy() }
}

/// Sort rows by destination, in the form that [`update::add_rows`] reads. Also return the number of destinations.
fn plan(at: &[u32]) -> (Vec<u32>, usize) {
    let mut order: Vec<u32> = (0..at.len() as u32).collect();
    order.sort_by_key(|&row| at[row as usize]); // stable: rows of one destination keep their order
    let (mut starts, mut places) = (Vec::new(), Vec::new());
    for (index, &row) in order.iter().enumerate() {
        let place = at[row as usize];
        if places.last() != Some(&place) {
            places.push(place);
            starts.push(index as u32);
        }
    }
    starts.push(at.len() as u32);
    (([order, starts, places.clone()]).concat(), places.len())
}

impl GpuUpdates for Cube {
    fn gpu_adamw(
        value: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let ([value, m, v], gradient) = ([value, m, v].map(writable), dense(gradient));
        let client = value.client.clone();
        let count = value.meta.num_elements();
        assert!([&m, &v, &gradient].iter().all(|x| x.meta.num_elements() == count), "one of each per parameter");
        let vector = if count.is_multiple_of(4) { 4 } else { 1 };
        let units = units(&client, 256);
        update::adamw::launch(
            &client,
            elements(&client, count / vector, units),
            CubeDim::new_1d(units),
            vector,
            value.clone().into_tensor_arg(),
            m.clone().into_tensor_arg(),
            v.clone().into_tensor_arg(),
            gradient.into_tensor_arg(),
            step.scale,
            step.beta1,
            step.beta2,
            step.epsilon,
            step.rate,
            step.correction,
            step.keep,
            elem(m.dtype),
        );
        (value, m, v)
    }

    fn gpu_add_rows(table: FloatTensor<Self>, rows: FloatTensor<Self>, at: Vec<u32>) -> FloatTensor<Self> {
        if at.is_empty() {
            return table;
        }
        let (table, rows) = (writable(table), dense(rows));
        let client = table.client.clone();
        let [height, width] = table.meta.shape().dims();
        assert!(at.iter().all(|&row| (row as usize) < height), "a place beyond the table");
        let (plan, places) = plan(&at);
        let plan = send(&table, &plan);
        let units = units_for(&client, width);
        update::add_rows::launch(
            &client,
            cubes(&client, places * width.div_ceil(units as usize)),
            CubeDim::new_1d(units),
            table.clone().into_tensor_arg(),
            rows.into_tensor_arg(),
            plan.into_tensor_arg(),
            places,
        );
        table
    }

    fn gpu_parts(like: FloatTensor<Self>, count: usize) -> FloatTensor<Self> {
        empty(&like, [count], DType::F32)
    }

    fn gpu_sums_of_squares(x: FloatTensor<Self>, parts: FloatTensor<Self>, from: usize) -> FloatTensor<Self> {
        let x = dense(x);
        let client = x.client.clone();
        let units = units(&client, 256);
        update::sums_of_squares::launch(
            &client,
            cubes(&client, x.meta.num_elements().div_ceil(CHUNK)),
            CubeDim::new_1d(units),
            x.into_tensor_arg(),
            parts.clone().into_tensor_arg(),
            from,
            CHUNK,
            units as usize,
        );
        parts
    }
}
