//! Which models are served: `--model DIR` or `--model ID=DIR`, and the demo models when none is named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::{Invalid, Problems};

/// A model that ships with the repository.
struct Demo {
    /// Its folder, relative to the repository's root.
    dir: &'static str,
    title: &'static str,
    description: &'static str,
}

/// The first is the one that a client gets who names none.
const DEMOS: [Demo; 2] = [
    Demo {
        dir: "models/demo-flash",
        title: "Demo Flash",
        description: "A tiny model of the DeepSeek-V4 architecture, trained for this repository. It knows greetings, \
                      small sums, spelling, capitals, colours and JSON; it is no assistant.",
    },
    Demo {
        dir: "models/demo-pro",
        title: "Demo Pro",
        description: "The larger of this repository's tiny models. It thinks before it answers and calls tools: a \
                      calculator, the weather, the time. It is no assistant.",
    },
];

/// A model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelArg {
    /// Id that requests name.
    pub(crate) id: String,
    /// Checkpoint folder.
    pub(crate) dir: PathBuf,
    /// What people call it.
    pub(crate) title: Option<String>,
    /// What it is.
    pub(crate) description: Option<String>,
}

/// Parses every `--model`, noting all mistakes; ids must differ.
pub(crate) fn parse_all(typed: &[String], problems: &mut Problems) -> Vec<ModelArg> {
    let mut dirs = BTreeMap::new();
    let mut models = Vec::new();
    for text in typed {
        let Some(model) = problems.take(parse(text)) else { continue };
        if let Some(first) = dirs.insert(model.id.clone(), model.dir.clone()) {
            problems.take(Err::<(), _>(format!(
                "--model {text}: the id {} already names {}; give one of them another id with --model ID=DIR",
                model.id,
                first.display()
            )));
        }
        models.push(model);
    }
    models
}

/// Parses one `--model`; a model's id is its folder's name unless one is given.
pub(crate) fn parse(typed: &str) -> Result<ModelArg, Invalid> {
    let (id, dir) = match typed.split_once('=') {
        Some((id, dir)) => (Some(id.to_owned()), PathBuf::from(dir)),
        None => (None, PathBuf::from(typed)),
    };
    let Ok(dir) = dir.canonicalize() else {
        return Err(Invalid::one(format!("--model {typed}: there is no folder {}", dir.display())));
    };
    if !dir.is_dir() {
        return Err(Invalid::one(format!(
            "--model {typed}: {} is not a folder; name the folder that holds config.json",
            dir.display()
        )));
    }
    let name = || dir.file_name().map(|name| name.to_string_lossy().into_owned());
    match id.or_else(name) {
        Some(id) if is_id(&id) => Ok(ModelArg { id, dir, title: None, description: None }),
        Some(id) => Err(Invalid::one(format!(
            "--model {typed}: {id:?} cannot be a model id (letters, digits and . _ - / only); use --model ID=DIR"
        ))),
        None => Err(Invalid::one(format!("--model {typed}: give it an id with --model ID=DIR"))),
    }
}

/// Gives models the titles and descriptions of `--model-title` and `--model-description`, noting all mistakes.
pub(crate) fn describe(
    models: &mut [ModelArg],
    titles: &[String],
    descriptions: &[String],
    problems: &mut Problems,
) {
    for typed in titles {
        if let Some((model, text)) = problems.take(named("--model-title", typed, models)) {
            model.title = Some(text);
        }
    }
    for typed in descriptions {
        if let Some((model, text)) = problems.take(named("--model-description", typed, models)) {
            model.description = Some(text);
        }
    }
}

/// The model and the text of `ID=TEXT`.
fn named<'a>(
    flag: &str,
    typed: &str,
    models: &'a mut [ModelArg],
) -> Result<(&'a mut ModelArg, String), String> {
    let Some((id, text)) = typed.split_once('=').filter(|(_, text)| !text.trim().is_empty()) else {
        return Err(format!("{flag} {typed}: expected a model's id and a text, ID=TEXT"));
    };
    let ids = models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>().join(", ");
    match models.iter_mut().find(|model| model.id == id) {
        Some(model) => Ok((model, text.trim().to_owned())),
        None => Err(format!("{flag} {typed}: no --model has the id {id}; there is {ids}")),
    }
}

/// The demo models: below the current directory, below the folder of the executable or of one of its parents
/// (`target/release/switchyard` lies inside the workspace), or in the workspace this binary was built from.
///
/// # Errors
/// They are nowhere; the message says what to do.
pub(crate) fn demos() -> Result<Vec<ModelArg>, Invalid> {
    let executable = std::env::current_exe().ok();
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let mut roots = std::env::current_dir()
        .ok()
        .into_iter()
        .chain(executable.iter().flat_map(|path| path.ancestors().skip(1).map(Path::to_path_buf)))
        .chain(built_from.map(Path::to_path_buf));
    let is_there =
        |root: &PathBuf| DEMOS.iter().all(|demo| root.join(demo.dir).join("config.json").is_file());
    let Some(root) = roots.find(is_there) else {
        let dirs = DEMOS.map(|demo| demo.dir).join(" and ");
        return Err(Invalid::one(format!(
            "no --model is given and the demo models {dirs} are neither in the current directory nor beside this \
             program; name a checkpoint folder: switchyard up --model DIR"
        )));
    };
    let model = |demo: &Demo| {
        Ok(ModelArg {
            title: Some(demo.title.to_owned()),
            description: Some(demo.description.to_owned()),
            ..parse(&root.join(demo.dir).to_string_lossy())?
        })
    };
    DEMOS.iter().map(model).collect()
}

fn is_id(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    !id.is_empty() && id.len() <= 128 && id.chars().all(plain)
}

#[cfg(test)]
mod tests;
