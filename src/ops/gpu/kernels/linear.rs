//! Bias addition after a matrix product.

use cubecl::prelude::*;

/// Add the bias to every row, in place; one thread per element.
///
/// # Shapes
/// - x: `[rows, width]`; bias: `[width]`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn add_bias(x: &mut Tensor<f32>, bias: &Tensor<f32>) {
    let (rows, width) = (x.shape(0), x.shape(1));
    if ABSOLUTE_POS >= rows * width {
        terminate!();
    }
    x[ABSOLUTE_POS] += bias[ABSOLUTE_POS % width];
}
