//! Kernel launches that are recorded once as a graph and replayed together: a launch costs the host some 25 µs, more
//! than most decoding kernels take on a large GPU.

use burn::backend::Cube;
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Graph;
use cubecl::future::block_on;
use cubecl::prelude::*;

use super::kernels::pointwise;
use super::memory::{self, dense, elem, elements, in_place_target, integers, units};

/// A graph of recorded launches.
pub(crate) struct Recording(Graph);

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recording")
    }
}

/// Runs before the recorded one: the first compiles kernels and allocates memory, the second finds both ready.
const WARM_UP_RUNS: usize = 2;

/// Record the launches of `compute` on the device of `like`. Also return its result, which every replay overwrites.
///
/// # Errors
/// If the runtime cannot record, or `compute` does something that cannot be recorded.
pub(crate) fn record<T>(like: &Tensor<2, Int>, mut compute: impl FnMut() -> T) -> Result<(Recording, T), String> {
    let like: CubeTensor = like.clone().try_into_primitive::<Cube>().expect("a tensor on a GPU");
    let client = like.client;
    let reason = |error| format!("{error:?}");
    client.graph_prepare().map_err(reason)?;
    for _ in 0..WARM_UP_RUNS {
        let out = compute();
        block_on(client.sync()).map_err(reason)?;
        drop(out);
    }
    client.start_capture().map_err(reason)?;
    let out = compute();
    Ok((Recording(client.stop_capture().map_err(reason)?), out))
}

impl Recording {
    /// Replay the launches, on the current contents of their inputs.
    ///
    /// The memory that they read or write must still be allocated, and the thread must be the one that recorded them.
    ///
    /// # Errors
    /// The driver's error message.
    #[allow(unsafe_code, reason = "a replay uses addresses; the caller keeps their memory")]
    pub(crate) fn replay(&self) -> Result<(), String> {
        // SAFETY: the contract above, which the only caller keeps by owning the tensors and staying on one thread.
        unsafe { self.0.replay() }.map_err(|error| format!("{error:?}"))
    }
}

/// Copy integers to new memory, in the integer format of kernels.
pub(crate) fn copy_ints<const D: usize>(x: Tensor<D, Int>) -> Tensor<D, Int> {
    let x: CubeTensor = x.try_into_primitive::<Cube>().expect("a tensor on a GPU");
    Tensor::from_primitive::<Cube>(copy(integers(x)))
}

/// Copy floats to new memory, contiguous.
pub(crate) fn copy_floats<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let x: CubeTensor = x.try_into_primitive::<Cube>().expect("a tensor on a GPU");
    Tensor::from_primitive::<Cube>(copy(dense(x)))
}

fn copy(x: CubeTensor) -> CubeTensor {
    let copy = memory::empty(&x, x.meta.shape().clone(), x.dtype);
    launch_overwrite(copy.clone(), x);
    copy
}

/// Overwrite the contents of `to` with `from`.
pub(crate) fn overwrite_ints<const D: usize>(to: &Tensor<D, Int>, from: Tensor<D, Int>) {
    let primitive = |x: Tensor<D, Int>| x.try_into_primitive::<Cube>().expect("a tensor on a GPU");
    launch_overwrite(primitive(to.clone()), integers(primitive(from)));
}

/// [`overwrite_ints`] for floats.
pub(crate) fn overwrite<const D: usize>(to: &Tensor<D>, from: Tensor<D>) {
    let primitive = |x: Tensor<D>| x.try_into_primitive::<Cube>().expect("a tensor on a GPU");
    launch_overwrite(primitive(to.clone()), dense(memory::cast(primitive(from), DType::F32)));
}

fn launch_overwrite(to: CubeTensor, from: CubeTensor) {
    let to = in_place_target(to);
    assert_eq!((to.meta.shape(), to.dtype), (from.meta.shape(), from.dtype), "what is overwritten, and with what");
    let client = to.client.clone();
    let (count, units, format) = (to.meta.num_elements(), units(&client, 128), elem(to.dtype));
    pointwise::overwrite::launch(
        &client,
        elements(&client, count, units),
        CubeDim::new_1d(units),
        from.into_tensor_arg(),
        to.into_tensor_arg(),
        format,
    );
}
