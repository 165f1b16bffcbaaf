//! Integration tests in one binary. `TEMPERING_TEST_DEVICE` is the device under test (default `cpu`).

mod support;

mod checkpoint; // Saving and loading of models and checkpoints.
mod cli; // The command-line program: exit codes, files, interruptions.
mod conflict; // Metrics of the entropy conflict.
mod devices; // The quickstart on the device under test against the CPU.
mod engine; // Completions from servers: a fake with injected faults, and a real vLLM.
mod evaluation; // Evaluation figures against values computed by hand, and interruptions.
mod families; // Each model family against transformers, PyTorch and PEFT.
mod follow; // Live output of a run: TensorBoard, and a program that receives the metrics.
mod generation; // Sampling against the plain forward pass.
mod golden; // Recorded training curves of four methods.
mod hub; // Models and data sets by name, from a test double of the Hub.
mod layers; // Dependencies between rooms.
mod library; // Runs by a program: its rewards, its problems, its observer.
mod lora; // LoRA adapters, and models stored in half precision.
mod methods; // Advantages against other implementations, and every file in configs/methods.
mod objective; // The loss of a step against TRL.
mod pages; // The HTML pages in a real browser.
mod ranks; // One run on several processes.
mod reference; // The base model against Hugging Face transformers.
mod run; // Run directories: overwriting, resuming, extending, settings.
mod score; // Log-probabilities of given tokens.
mod settings; // The list of all settings.
mod shipped; // The configurations and data sets that come with the repository.
mod study; // Studies: comparisons of methods at equal budget.
mod text; // Prompts, and the published generation settings of models.
mod training; // SFT and RL: invariances, learning, resumption.
mod verify; // The verifier: graded pairs, published answers, the command.
