//! What decoding computes on a GPU, without gradients: the state stays there, and a layer is some ten launches.
//!
//! The kernels are in `ops/gpu/inference.rs`; ask [`is_gpu`](super::is_gpu) before.

use burn::tensor::{FloatDType, Int, Tensor};

#[cfg(feature = "gpu")]
use super::gpu;
use super::{cpu, on};

/// Decoding whose state is on a GPU: what each row is doing, and the rotations of all positions.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(crate) struct Decoding {
    /// `[rows, 4]`: first table row of the prompt, its length, first table row of the completion, its tokens so far without
    /// the new one. [`sample`] counts the last up.
    pub states: Tensor<2, Int>,
    /// Cosines beside sines of queries and of keys, `[positions, head_dim]`.
    pub angles: [Tensor<2>; 2],
    /// The format that products read.
    pub stored: FloatDType,
}

/// `x + factor · part` where there is a part, and its root mean square norm in the format `stored`. On a GPU.
///
/// # Shapes
/// - x, part, outputs: `[rows, width]`; weight: `[width]`
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
pub(crate) fn add_rms_norm(
    x: Tensor<2>,
    part: Option<(Tensor<2>, f64)>,
    weight: Tensor<1>,
    epsilon: f64,
    stored: FloatDType,
) -> (Tensor<2>, Tensor<2>) {
    on!(
        x.device(),
        cpu: no_kernel(),
        gpu: gpu::add_rms_norm(x, part, weight, epsilon, stored),
        plain: no_kernel()
    )
}

/// `x W` for each of the weights, factors in `format`, results in f32. On a GPU, without gradients.
///
/// # Shapes
/// - x: `[rows, input]`; weights: `[input, output]` each; outputs: `[rows, output]`
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
pub(crate) fn products<const N: usize>(x: Tensor<2>, weights: [Tensor<2>; N], format: FloatDType) -> [Tensor<2>; N] {
    on!(x.device(), cpu: no_kernel(), gpu: gpu::inference::products(x, weights, format), plain: no_kernel())
}

/// `silu(gate) · up` in the format `stored`. On a GPU.
///
/// # Shapes
/// - all: `[rows, intermediate]`
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
pub(crate) fn swiglu_as(gate: Tensor<2>, up: Tensor<2>, stored: FloatDType) -> Tensor<2> {
    on!(gate.device(), cpu: no_kernel(), gpu: gpu::swiglu(gate, up, stored), plain: no_kernel())
}

/// Adds biases to the projections of new tokens, rotates queries and keys when `rotates`, puts keys and values into the tables,
/// and attends to the tables. On a GPU, without gradients.
///
/// # Shapes
/// - projections: `[rows, heads · head_dim]` of queries, `[rows, kv_heads · head_dim]` of keys and values; biases alike
/// - tables: `[tokens, kv_heads · head_dim]`; output: `[rows, heads · head_dim]`
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
pub(crate) fn attend(
    projections: [Tensor<2>; 3],
    biases: Option<[Tensor<1>; 3]>,
    rotates: bool,
    tables: [&Tensor<2>; 2],
    dim: usize,
    decoding: &Decoding,
) -> Tensor<2> {
    on!(
        tables[0].device(),
        cpu: no_kernel(),
        gpu: gpu::inference::attend(projections, biases, rotates, tables, dim, decoding),
        plain: no_kernel()
    )
}

/// Draws a token per row and counts it in `states`, where it is; `uniforms` is read in column `place`. On a GPU.
///
/// # Shapes
/// - logits: `[rows, vocab]`; uniforms: `[rows, places]`; states: `[rows, 4]`, see [`Decoding`]
/// - tokens: `[rows]`; numbers: `[rows, 7]`, the fields of `generate::Sampled`
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
pub(crate) fn sample(
    logits: Tensor<2>,
    temperature: f32,
    uniforms: Tensor<2>,
    place: usize,
    states: Tensor<2, Int>,
) -> (Tensor<1, Int>, Tensor<2>) {
    on!(
        logits.device(),
        cpu: no_kernel(),
        gpu: gpu::inference::sample(logits, temperature, uniforms, place, states),
        plain: no_kernel()
    )
}

/// A computation recorded on a GPU, to be replayed with other inputs.
///
/// The recording has addresses. This type owns the memory of its inputs and of its output; the caller keeps the weights and
/// the tables of the cache until it is dropped.
#[derive(Debug)]
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(crate) struct Repeated {
    tokens: Tensor<1, Int>,
    uniforms: Tensor<2>,
    states: Tensor<2, Int>,
    output: Tensor<2>,
    #[cfg(feature = "gpu")]
    recording: gpu::recording::Recording,
}

impl Repeated {
    /// Runs `compute` three times on copies of `tokens`, `uniforms` and `states`, and records the third. `compute` may write
    /// `states`; the values of `tokens` and `uniforms` do not matter.
    ///
    /// # Errors
    /// Where the runtime records nothing, with the reason.
    #[cfg_attr(not(feature = "gpu"), allow(unused_variables, unused_mut))]
    pub(crate) fn record(
        tokens: Tensor<1, Int>,
        uniforms: Tensor<2>,
        states: Tensor<2, Int>,
        mut compute: impl FnMut(Tensor<1, Int>, Tensor<2>, Tensor<2, Int>) -> Tensor<2>,
    ) -> Result<Self, String> {
        #[cfg(feature = "gpu")]
        {
            let (tokens, states) = (gpu::recording::own_ints(tokens), gpu::recording::own_ints(states));
            let uniforms = gpu::recording::own(uniforms);
            let once = || compute(tokens.clone(), uniforms.clone(), states.clone());
            let (recording, output) = gpu::recording::record(&states, once)?;
            Ok(Self { tokens, uniforms, states, output, recording })
        }
        #[cfg(not(feature = "gpu"))]
        Err("no GPU backend is part of this program".to_string())
    }

    /// The output for these inputs; a later replay writes it anew.
    ///
    /// # Errors
    /// What the driver says.
    #[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
    pub(crate) fn replay(
        &self,
        tokens: Tensor<1, Int>,
        uniforms: Tensor<2>,
        states: Tensor<2, Int>,
    ) -> Result<Tensor<2>, String> {
        #[cfg(feature = "gpu")]
        {
            gpu::recording::overwrite_ints(&self.tokens, tokens);
            gpu::recording::overwrite(&self.uniforms, uniforms);
            gpu::recording::overwrite_ints(&self.states, states);
            self.recording.replay()?;
        }
        Ok(self.output.clone())
    }
}

/// Where [`is_gpu`] was not asked.
fn no_kernel() -> ! {
    panic!("a kernel of GPUs on another device")
}
