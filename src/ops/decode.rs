//! Decoding operations on a GPU, without autodiff. The state stays on the GPU; a layer takes about ten launches.
//!
//! They are implemented in `ops/gpu/inference.rs` and panic on other devices: check [`is_gpu`](super::is_gpu) first.

use burn::tensor::{FloatDType, Int, Tensor};

#[cfg(feature = "gpu")]
use super::gpu;
use super::{cpu, on};

/// Decoding state on a GPU: the progress of each row, and the rotary angles of all positions.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(crate) struct Decoding {
    /// `[rows, 4]`: first cache row of the prompt, prompt length, first cache row of the completion, completion tokens
    /// so far without the new one. [`sample`] increments the last.
    pub states: Tensor<2, Int>,
    /// Rotary tables of queries and of keys, `[positions, head_dim]` each: cosines first, then sines.
    pub angles: [Tensor<2>; 2],
    /// Operand format of products.
    pub stored: FloatDType,
}

/// Return `x + factor · part` (`x` without a part), and its RMS norm in the format `stored`. GPU only.
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

/// `x W` for each of the weights, operands in `format`, results in f32. GPU only, no autodiff.
///
/// # Shapes
/// - x: `[rows, input]`; weights: `[input, output]` each; outputs: `[rows, output]`
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
pub(crate) fn products<const N: usize>(x: Tensor<2>, weights: [Tensor<2>; N], format: FloatDType) -> [Tensor<2>; N] {
    on!(x.device(), cpu: no_kernel(), gpu: gpu::inference::products(x, weights, format), plain: no_kernel())
}

/// `silu(gate) · up` in the format `stored`. GPU only.
///
/// # Shapes
/// - all: `[rows, intermediate]`
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
pub(crate) fn swiglu_as(gate: Tensor<2>, up: Tensor<2>, stored: FloatDType) -> Tensor<2> {
    on!(gate.device(), cpu: no_kernel(), gpu: gpu::swiglu(gate, up, stored), plain: no_kernel())
}

/// Add biases to the projections of new tokens, apply rotary embedding to queries and keys if `rotates`, write keys
/// and values to the cache tables, and attend to the tables. GPU only, no autodiff.
///
/// # Shapes
/// - projections: `[rows, heads · head_dim]` (queries), `[rows, kv_heads · head_dim]` (keys, values); biases alike
/// - tables (keys, values): `[tokens, kv_heads · head_dim]`; output: `[rows, heads · head_dim]`
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

/// Sample a token per row and increment its count in `states` in place, using column `place` of `uniforms`. GPU only.
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

/// A computation recorded as a GPU graph, to be replayed with other inputs.
///
/// The graph refers to memory by address. This type owns the memory of its inputs and its output; the caller must keep
/// the weights and the KV cache alive until it is dropped.
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
    /// Run `compute` three times on copies of `tokens`, `uniforms` and `states`, and record the third run. `compute`
    /// may write `states`; the values of `tokens` and `uniforms` are arbitrary.
    ///
    /// # Errors
    /// If the runtime cannot record the computation, with the reason.
    #[cfg_attr(not(feature = "gpu"), allow(unused_variables, unused_mut))]
    pub(crate) fn record(
        tokens: Tensor<1, Int>,
        uniforms: Tensor<2>,
        states: Tensor<2, Int>,
        mut compute: impl FnMut(Tensor<1, Int>, Tensor<2>, Tensor<2, Int>) -> Tensor<2>,
    ) -> Result<Self, String> {
        #[cfg(feature = "gpu")]
        {
            let (tokens, states) = (gpu::recording::copy_ints(tokens), gpu::recording::copy_ints(states));
            let uniforms = gpu::recording::copy_floats(uniforms);
            let once = || compute(tokens.clone(), uniforms.clone(), states.clone());
            let (recording, output) = gpu::recording::record(&states, once)?;
            Ok(Self { tokens, uniforms, states, output, recording })
        }
        #[cfg(not(feature = "gpu"))]
        Err("no GPU backend is part of this program".to_string())
    }

    /// Replay the computation on these inputs. Return its output, which the next replay overwrites.
    ///
    /// # Errors
    /// The driver's error message.
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

/// Panics: the caller did not check [`is_gpu`](super::is_gpu).
fn no_kernel() -> ! {
    panic!("a kernel of GPUs on another device")
}
