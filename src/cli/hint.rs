//! Advice on the command line: the library's fields become flags, its verbs commands.

use super::exit::{Exit, Usage};
use crate::checkpoint::CheckpointError;
use crate::convert::ConvertError;
use crate::data::DataError;
use crate::destination::DestinationError;
use crate::fetch::FetchError;
use crate::hint::{Argument, Command, Hint, Part, Setting};
use crate::identify::IdentifyError;
use crate::kernels::{DeviceError, KernelError};
use crate::model::CanonicalError;
use crate::onnx::runtime::RuntimeError;
use crate::onnx::{CalibrationError, CheckError, ContractError, ExportError};
use crate::train::distributed::DistributedError;
use crate::train::{RecipeError, RunError, StepError};
use crate::verify::VerifyError;
use crate::view::ViewError;
use crate::zoo::ZooError;

/// Fields whose flag has another name; every other flag is its field's name, with hyphens.
const RENAMED: [(&str, &str); 3] = [("norm_eps", "eps"), ("layout", "to"), ("purpose", "for")];

/// What the first error of the chain that has advice says to do next.
pub(super) fn of(error: &anyhow::Error) -> Option<Hint> {
    error.chain().find_map(advice)
}

fn advice(error: &(dyn std::error::Error + 'static)) -> Option<Hint> {
    macro_rules! first {
        ($($kind:ty),* $(,)?) => {
            None$(.or_else(|| error.downcast_ref::<$kind>().and_then(|error| error.hint())))*
        };
    }
    first![
        Advised,
        CalibrationError,
        CanonicalError,
        CheckError,
        CheckpointError,
        ContractError,
        ConvertError,
        DataError,
        DestinationError,
        DeviceError,
        DistributedError,
        ExportError,
        FetchError,
        IdentifyError,
        KernelError,
        RecipeError,
        RunError,
        RuntimeError,
        StepError,
        VerifyError,
        ViewError,
        ZooError
    ]
}

/// A refusal of the command line's own, with advice.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Advised {
    text: String,
    hint: Hint,
    exit: Exit,
}

impl Advised {
    /// A refusal with a named reason.
    pub(super) fn refusal(text: impl Into<String>, hint: impl Into<Hint>) -> anyhow::Error {
        Self { text: text.into(), hint: hint.into(), exit: Exit::Failed }.into()
    }

    /// A command line that cannot be meant.
    pub(super) fn usage(Usage(text): Usage, hint: impl Into<Hint>) -> anyhow::Error {
        Self { text, hint: hint.into(), exit: Exit::Usage }.into()
    }

    /// The code the program ends with.
    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    fn hint(&self) -> Option<Hint> {
        Some(self.hint.clone())
    }
}

/// A hint as one would type it.
pub(super) fn shown(hint: &Hint) -> String {
    let part = |part: &Part| match part {
        Part::Words(words) => words.to_string(),
        Part::Option(setting) => format!("`{}`", flag(setting)),
        Part::Command(command) => format!("`{}`", line(command)),
    };
    hint.parts().iter().map(part).collect()
}

/// A command as one would type it.
fn line(command: &Command) -> String {
    let mut words = vec!["tec-zoo".to_owned(), command.verb.to_owned()];
    words.extend(command.arguments.iter().map(|argument| match argument {
        Argument::Word(word) => word.to_string(),
        Argument::Option(setting) => flag(setting),
    }));
    words.join(" ")
}

fn flag(Setting { name, value }: &Setting) -> String {
    if name.contains('.') {
        // The key of a recipe.
        return format!("--set {name}={}", value.as_deref().unwrap_or("…"));
    }
    if name == "size" && value.as_deref() == Some("dynamic") {
        return "--dynamic".to_owned();
    }
    let renamed = RENAMED.iter().find(|(field, _)| field == name).map(|(_, flag)| *flag);
    let flag = renamed.map_or_else(|| name.replace('_', "-"), str::to_owned);
    match value {
        None => format!("--{flag}"),
        Some(value) => format!("--{flag} {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_becomes_its_flag_and_a_verb_a_command() {
        let hint = Hint::new().set("norm_eps", "X").words(" or ").option("overwrite").words("; ");
        let hint =
            hint.command(Command::new("convert").word("FILE").set("image_size", "224x224").set("layout", "timm"));
        assert_eq!(shown(&hint), "`--eps X` or `--overwrite`; `tec-zoo convert FILE --image-size 224x224 --to timm`");
    }

    #[test]
    fn a_key_of_a_recipe_is_set() {
        assert_eq!(shown(&Hint::new().set("optimizer.batch", "12")), "`--set optimizer.batch=12`");
    }
}
