//! Checks whether the settings suit the trained model: those of the embedded model do not suit a real one.

use std::path::Path;

use burn::tensor::Device;

use super::settings::RlConfig;
use crate::error::{Error, Result};
use crate::model::Precision;
use crate::ops;

/// Learning rates of the recipes: for all weights of a model, and for adapters.
const RECIPE_RATES: [f64; 2] = [1e-6, 1e-5];
/// Factor above or below the recipe's learning rate beyond which a rate is remarked on.
const MAX_RATE_FACTOR: f64 = 10.0;
/// Least number of parameters of a model that learns at the recipe's rate. The embedded model has 0.85 million and
/// learns at 1e-4.
const MIN_PARAMETERS: usize = 50_000_000;
/// Share of cut completions above which a length clip is remarked on.
const MAX_CUT_SHARE: f64 = 0.5;

impl RlConfig {
    /// Refuse the defaults of `train` without a settings file, which are for the embedded model, for any other model.
    ///
    /// # Errors
    /// If `model.path` is another model; the message names the recipes.
    pub fn check_embedded_model(&self) -> Result<()> {
        let folder = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let (model, embedded) = (&self.model.path, Self::default().model.path);
        if folder(model) == folder(&embedded) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "without a settings file, train uses the settings of the embedded model (learning rate 1e-4, maximum \
             completion lengths of 256 and 96 tokens), which damage a larger model. For {} use a recipe:\n  tempering \
             train configs/recipes/reasoning.toml --set model.path={0}       # a reasoning model\n  tempering train \
             configs/recipes/instruct.toml --set model.path={0}        # an instruct model\n  (reasoning_lora.toml and \
             instruct_lora.toml train adapters.) For a model as small as the embedded one: configs/quickstart.toml",
            model.display()
        )))
    }

    /// Return a remark if the learning rate is far from the recipes', for a model of `parameters` parameters.
    pub fn learning_rate_remark(&self, parameters: usize) -> Option<String> {
        let [all, adapters] = RECIPE_RATES;
        let (usual, what) = if self.lora.is_some() { (adapters, "adapters") } else { (all, "all weights") };
        let rate = self.optim.learning_rate;
        let far = rate > MAX_RATE_FACTOR * usual || rate < usual / MAX_RATE_FACTOR;
        (parameters >= MIN_PARAMETERS && far).then(|| {
            let millions = parameters / 1_000_000;
            format!("optim.learning_rate = {rate:e} is far from the recipes' {usual:e} for {what} of a model of {millions} M parameters")
        })
    }

    /// Return a remark if all weights are trained in bf16 on the `cpu` device.
    pub fn precision_remark(&self, device: &Device) -> Option<String> {
        let converts = self.model.dtype == Precision::Bf16 && self.lora.is_none() && ops::is_host(device);
        converts.then(|| {
            "model.dtype = \"bf16\" on the cpu device rounds all weights again for each product, which costs time and \
                saves no memory; to speed up sampling only, set rollout.dtype = \"bf16\" instead"
                .to_string()
        })
    }

    /// Return a remark if the first stage's length clip is below most of `lengths`, those of the base evaluation's
    /// completions in tokens. Later stages are not checked, since they sample from a trained model.
    pub fn length_clip_remark(&self, lengths: &[usize]) -> Option<String> {
        let clip = self.stages.first()?.sampling.max_completion_length;
        let cut = lengths.iter().filter(|&&length| length > clip).count() as f64 / lengths.len().max(1) as f64;
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        (cut > MAX_CUT_SHARE).then(|| {
            format!(
                "stages.0.sampling.max_completion_length = {clip} would have truncated {:.0}% of the base model's \
                 completions (median {} tokens); truncated completions count as wrong, and most of the training signal \
                 is lost: raise it",
                100.0 * cut,
                sorted[sorted.len() / 2]
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LoraConfig;

    #[test]
    fn the_embedded_settings_are_for_the_embedded_model() {
        let mut config = RlConfig::default();
        assert!(config.check_embedded_model().is_ok());
        config.model.path = "models/real".into();
        let error = config.check_embedded_model().unwrap_err().to_string();
        assert!(error.contains("configs/recipes/reasoning.toml --set model.path=models/real"), "{error}");
    }

    #[test]
    fn a_learning_rate_is_compared_with_that_of_a_real_model() {
        let mut config = RlConfig::default();
        assert_eq!(config.learning_rate_remark(850_000), None);
        let remark = config.learning_rate_remark(494_000_000).unwrap();
        assert!(remark.contains("1e-4") && remark.contains("1e-6 for all weights"), "{remark}");
        config.lora = Some(LoraConfig::default());
        assert_eq!(config.learning_rate_remark(494_000_000), None, "ten times the recipe's for adapters");
    }

    #[test]
    fn a_clip_that_cuts_most_completions_is_remarked_on() {
        let config = RlConfig::default();
        assert_eq!(config.length_clip_remark(&[100, 256, 300]), None);
        let remark = config.length_clip_remark(&[100, 257, 900]).unwrap();
        assert!(
            remark.contains("max_completion_length = 256") && remark.contains("67%") && remark.contains("257"),
            "{remark}"
        );
        assert_eq!(config.length_clip_remark(&[]), None);
    }
}
