//! A model's weights as a list of tensors, from which another process builds the same model.

use burn::tensor::{Device, FloatDType, TensorData};
use sha2::{Digest, Sha256};

use super::params::{ADAPTER, WeightFormat, entries, replace};
use super::tensors::TensorEntry;
use super::{CausalLm, LoraConfig, ModelConfig, Precision, lora};

/// Iterate over the base weights, then the adapter weights; each tensor's values are fetched on demand.
pub(crate) fn weights(model: &CausalLm) -> impl Iterator<Item = TensorEntry> {
    let adapters = entries(model).into_iter().filter(|entry| entry.name.starts_with(ADAPTER));
    entries(&lora::detach(model)).into_iter().chain(adapters)
}

/// Return the values of a tensor of [`weights`].
pub(crate) fn values(entry: &TensorEntry) -> Vec<f32> {
    (entry.values)().try_into_vec().unwrap_or_else(|error| panic!("not f32: {error:?}"))
}

/// Build a model to train; `fetch` fills the tensors of [`weights`] in their order.
pub(crate) fn rebuild(
    config: &ModelConfig,
    precision: Precision,
    lora: Option<&LoraConfig>,
    device: &Device,
    mut fetch: impl FnMut(&mut [f32]),
) -> CausalLm {
    let mut values = |shape: &[usize]| {
        let mut values = vec![0.0; shape.iter().product()];
        fetch(&mut values);
        Some(TensorData::new(values, shape.to_vec()))
    };
    let held = if lora.is_some() {
        WeightFormat::below_adapters(precision, device)
    } else {
        WeightFormat::on(precision, device)
    };
    let model = replace(CausalLm::new(config, precision, device), held, |_, shape| values(shape));
    let Some(lora) = lora else { return model };
    let adapter = |name: &str| name.starts_with(ADAPTER);
    replace(
        lora.attach(model, 0),
        WeightFormat::As(FloatDType::F32),
        |name, shape| if adapter(name) { values(shape) } else { None },
    )
}

/// Return the SHA-256 of all weights; equal for bitwise equal models.
pub(crate) fn digest(model: &CausalLm) -> String {
    let mut sum = Sha256::new();
    for entry in weights(model) {
        values(&entry).chunks(1 << 16).for_each(|part| {
            let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
            sum.update(&bytes);
        });
    }
    format!("{:x}", sum.finalize())
}
