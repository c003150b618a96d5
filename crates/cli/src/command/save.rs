//! `config save`: the deployed configuration becomes a file.

use super::Context;
use super::config::{check_shape, deployed, written};
use crate::args::{AppArgs, Yes};
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, Build, Config};
use crate::prompt;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Save {
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    yes: Yes,
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Write YAML
    #[arg(long)]
    yaml: bool,
}

pub(super) async fn run(context: &Context<'_>, args: Save) -> Outcome {
    let path = target(context, &args);
    // The file that is named need not be there.
    let app = match context.given_app(&args.app) {
        Some(app) => app,
        None => context.app_name(&args.app)?,
    };
    let loaded = deployed(context, &AppArgs { app: Some(app), config: None }).await?;
    check_shape(&loaded)?;
    let mut config = loaded.config;
    if path.exists() && !args.yes.yes {
        let question = format!(
            "An existing configuration file has been found\nOverwrite file '{}'",
            path.display()
        );
        if !confirm(context, &question)? {
            return Ok(());
        }
    }
    if let Some(build) = local_build(context, &path, args.yes.yes)? {
        config.build = Some(build);
    }
    write(&path, &config)?;
    let shown = path.strip_prefix(&context.env.dir).unwrap_or(&path);
    context.console.line(format!("Wrote config file {}", shown.display()));
    Ok(())
}

/// The file that is named, or `fly.toml`, with the ending of the format that is asked for.
fn target(context: &Context<'_>, args: &Save) -> PathBuf {
    let mut path = context.env.dir.join(args.app.config.as_deref().unwrap_or(Path::new("")));
    if path.is_dir() {
        path = path.join("fly.toml");
    }
    match (args.json, args.yaml) {
        (true, _) => path.with_extension("json"),
        (false, true) => path.with_extension("yaml"),
        (false, false) => path,
    }
}

/// The section that says how *this* directory is built, which a deploy from elsewhere knew nothing of.
fn local_build(context: &Context<'_>, path: &Path, yes: bool) -> Outcome<Option<Build>> {
    if !path.exists() {
        return Ok(None);
    }
    let old = flytoml::load(path)
        .map_err(|error| Failure::from(error).context("error loading prev config"))?;
    let Some(build) = old.config.build else { return Ok(None) };
    if yes {
        return Ok(Some(build));
    }
    context.console.line(
        "\nSome sections of the config file are not kept remotely, such as the [build] section.",
    );
    let question =
        "Would you like to transfer the [build] section from the current config to the new one?";
    Ok(confirm(context, question)?.then_some(build))
}

/// flyctl has no sentence of its own for these two.
fn confirm(context: &Context<'_>, question: &str) -> Outcome<bool> {
    if !context.console.is_interactive() {
        return Err(
            Failure::new("prompt: non interactive").hint("Answer yes to all questions with --yes")
        );
    }
    prompt::confirm(context.console, question)
}

/// Never half a file: the old one stays until the new one is whole.
fn write(path: &Path, config: &Config) -> Outcome {
    let text = written(config, path)?;
    let new = path.with_extension("new");
    let saved = std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))
        .and_then(|()| std::fs::write(&new, text))
        .and_then(|()| std::fs::rename(&new, path));
    saved.map_err(|error| {
        // Nothing may be there to remove, or be removable; the error that counts is told.
        std::fs::remove_file(&new).ok();
        Failure::from(error).context(format!("could not write {}", path.display()))
    })
}
