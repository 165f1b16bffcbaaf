//! Jinja as `transformers` sets it up, in bounded work and memory: minijinja, with Python's operators, methods and texts.

mod expression;
mod filters;
mod methods;
mod operators;
mod rewrite;
#[cfg(test)]
mod tests;
mod value;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use self::rewrite::rewrite;
use self::value::{invalid, text};

/// Maximum work of one rendering: this many steps, or 64 bytes of text written or read per step. It limits the time to
/// a fraction of a second and the memory to a few times 64 MB. A conversation of a million tokens needs half of it.
const FUEL: u64 = 1_000_000;

/// Bytes of text that one step pays for, as in minijinja.
const BYTES_PER_STEP: u64 = 64;

/// Return an environment with one template. Its name is `name`.
///
/// # Errors
/// A message with the line of the template at which it cannot be read.
pub(super) fn compile(name: &'static str, source: &str) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| describe(&error))?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, state, value| {
        if !matches!(state.auto_escape(), AutoEscape::None) {
            return Err(invalid("autoescape is not supported"));
        }
        out.write_str(&text(state, value)?).map_err(Error::from)
    });
    operators::register(&mut environment);
    filters::register(&mut environment);
    // jinja2 reads line ends like this.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    environment.add_template_owned(name, rewrite(&source)?).map_err(|error| describe(&error))?;
    Ok(environment)
}

/// Return the message of an error, with the line of the template.
pub(super) fn describe(error: &Error) -> String {
    let line = error.line().map(|line| format!(" (template line {line})")).unwrap_or_default();
    if error.kind() == ErrorKind::OutOfFuel {
        return format!(
            "takes more than {FUEL} steps, or writes and reads more than {} MB of text{line}: a chat template needs \
             far less: check its loops, and the length of the conversation",
            FUEL * BYTES_PER_STEP / 1_000_000
        );
    }
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    format!("{}{detail}{line}", error.kind())
}
