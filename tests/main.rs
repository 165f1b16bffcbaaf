//! Integration tests, one binary. `TEMPERING_TEST_DEVICE` says where they compute (default `cpu`).

mod support;

mod checkpoint; // Directories written and read again, and broken ones refused.
mod cli; // The program as people run it: exit codes, files, interruptions.
mod conflict; // What accuracy and length do to the same tokens, in runs and without them.
mod devices; // The main job on the device under test and on the CPU.
mod engine; // Completions from servers: a fake that misbehaves on order, and a real vLLM.
mod evaluation; // Figures against figures by hand, and interruptions that change nothing.
mod families; // Each model family against transformers, PyTorch and PEFT.
mod follow; // Who follows a run: TensorBoard, and a program that is fed its metrics.
mod generation; // Sampling against the plain forward pass.
mod golden; // Curves of four methods, as recorded.
mod hub; // Models and data sets by name, from a double of the Hub.
mod layers; // The direction between rooms.
mod lora; // Adapters, and models stored in half precision.
mod methods; // Advantages as others compute them, and every file in configs/methods.
mod objective; // The loss of a step against TRL.
mod pages; // The pages in a real browser.
mod ranks; // One run on several processes.
mod reference; // The base model against Hugging Face transformers.
mod run; // A run's folder: who may replace it, go on with it, and with which settings.
mod score; // Log-probabilities of given tokens.
mod settings; // The list of all settings.
mod shipped; // The configurations and data sets that come with the repository.
mod study; // Methods compared: arms, settings and seeds at equal budget.
mod text; // What a model is asked, and the settings it was published with.
mod training; // SFT and RL: what must not change the result, and what must.
mod verify; // The verifier: graded pairs, published answers, the command.
