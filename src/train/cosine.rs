//! The cosine between the gradients of accuracy and length: the classic test for conflicting tasks.

use crate::error::{Error, Result};
use crate::model::CausalLm;
use crate::objective::{Parts, Upstream};
use crate::ops::to_host;
use crate::optim::Gradients;
use crate::train::batch::Sequence;
use crate::train::learner::Learner;

/// Return the cosine of the policy gradients of the two parts, `Σ w A_part ∇ ln π`: over the whole model (under the
/// name "") and over the parameters whose names begin with each of `layers`. Where a gradient is zero there is no
/// cosine.
///
/// `advantages` and `weights` have one entry per sequence. The function runs two forward and backward passes.
///
/// # Errors
/// An entry of `layers` with which no parameter's name begins; [`Error::Stopped`] soon after a stop request.
pub fn gradient_cosines(
    model: &CausalLm,
    learner: &Learner,
    sequences: &[Sequence],
    advantages: &[Parts],
    weights: &[f32],
    layers: &[String],
) -> Result<Vec<(String, f64)>> {
    let gradient = |part: fn(Parts) -> f32| {
        let mut gradients = Gradients::default();
        learner.backward(model, sequences, &mut gradients, |range, _| {
            let pull =
                |i: usize| std::iter::repeat_n(-weights[i] * part(advantages[i]), sequences[i].completion().len());
            let log_prob: Vec<f32> = range.flat_map(pull).collect();
            Some(Upstream { entropy: vec![0.0; log_prob.len()], log_prob })
        });
        gradients
    };
    let [task, length] = [gradient(|parts| parts.task), gradient(|parts| parts.length)];
    learner.stop.check()?;
    let mut cosines = Vec::new();
    for layer in std::iter::once("").chain(layers.iter().map(String::as_str)) {
        let names: Vec<&str> = task.names().filter(|name| name.starts_with(layer)).collect();
        if names.is_empty() && !task.0.is_empty() {
            let known: Vec<&str> = task.names().collect();
            return Err(Error::Invalid(format!(
                "train.conflict_cosine_layers has {layer:?}, but no trained parameter has a name that begins with it; \
                 the names are {}",
                known.join(", ")
            )));
        }
        cosines.extend(cosine(&task, &length, &names).map(|cosine| (layer.to_string(), cosine)));
    }
    Ok(cosines)
}

/// Return the cosine over the named parameters; `None` if a gradient is zero.
fn cosine(a: &Gradients, b: &Gradients, names: &[&str]) -> Option<f64> {
    let [mut product, mut a_square, mut b_square] = [0.0; 3];
    for &name in names {
        let (Some(a), Some(b)) = (a.0.get(name), b.0.get(name)) else { continue };
        for (a, b) in to_host(a.clone()).into_iter().zip(to_host(b.clone())) {
            let (a, b) = (f64::from(a), f64::from(b));
            product += a * b;
            a_square += a * a;
            b_square += b * b;
        }
    }
    let lengths = (a_square * b_square).sqrt();
    (lengths > 0.0).then(|| product / lengths)
}
