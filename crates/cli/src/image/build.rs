//! Building a Dockerfile with what is installed: `docker`, else `buildah`.

use super::{Image, ImageError, Source, archive};
use crate::env::{self, Environment};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What to build, and how.
#[derive(Debug, Clone)]
pub(crate) struct BuildOptions {
    /// The context: the directory of the app.
    pub(crate) dir: PathBuf,
    /// Dockerfile; relative to the context.
    pub(crate) dockerfile: PathBuf,
    pub(crate) args: BTreeMap<String, String>,
    /// Secrets of the build by id; they go to the builder in its environment, where no list of
    /// processes shows them.
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) target: Option<String>,
    pub(crate) no_cache: bool,
    /// Name of the result in the builder's own store.
    pub(crate) tag: String,
}

/// Builds and opens the result. The builder's own output goes to stderr as it comes. Blocks.
pub(crate) fn build(options: &BuildOptions, env: &Environment) -> Result<Image, ImageError> {
    let path = options.dir.join(&options.dockerfile);
    if !path.is_file() {
        return Err(ImageError::NoDockerfile { path });
    }
    if is_installed("docker", env) {
        run("docker", &docker_args(options, &path), options)?;
        return Source::Docker(options.tag.clone()).open(env);
    }
    if is_installed("buildah", env) {
        return build_with_buildah(options, &path);
    }
    Err(ImageError::NoBuilder)
}

fn docker_args(options: &BuildOptions, dockerfile: &Path) -> Vec<String> {
    let mut args = vec!["build".to_owned(), "--tag".to_owned(), options.tag.clone()];
    args.extend(common_args(options, dockerfile));
    args
}

fn build_with_buildah(options: &BuildOptions, dockerfile: &Path) -> Result<Image, ImageError> {
    let program = "buildah";
    let mut args = vec!["build".to_owned(), "--layers".to_owned(), "--tag".to_owned()];
    args.push(options.tag.clone());
    args.extend(common_args(options, dockerfile));
    run(program, &args, options)?;
    let dir = tempfile::tempdir().map_err(|error| failed(program, error.to_string()))?;
    let file = dir.path().join("image.tar");
    let target = format!("docker-archive:{}", file.display());
    run(program, &["push".to_owned(), options.tag.clone(), target], options)?;
    // The archive stays readable through its descriptor after the directory is removed.
    archive::open(&file)
}

fn common_args(options: &BuildOptions, dockerfile: &Path) -> Vec<String> {
    let mut args = vec!["--file".to_owned(), dockerfile.display().to_string()];
    for (name, value) in &options.args {
        args.extend(["--build-arg".to_owned(), format!("{name}={value}")]);
    }
    for (id, variable) in options.secrets.keys().map(|id| (id, secret_variable(id))) {
        args.extend(["--secret".to_owned(), format!("id={id},env={variable}")]);
    }
    for (name, value) in &options.labels {
        args.extend(["--label".to_owned(), format!("{name}={value}")]);
    }
    if let Some(target) = &options.target {
        args.extend(["--target".to_owned(), target.clone()]);
    }
    if options.no_cache {
        args.push("--no-cache".to_owned());
    }
    args.push(".".to_owned());
    args
}

/// The variable that carries a secret to the builder.
fn secret_variable(id: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("PERCH_BUILD_SECRET_{}", id.chars().map(safe).collect::<String>())
}

fn run(program: &'static str, args: &[String], options: &BuildOptions) -> Result<(), ImageError> {
    let status = Command::new(program)
        .args(args)
        .envs(options.secrets.iter().map(|(id, value)| (secret_variable(id), value)))
        .current_dir(&options.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .map_err(|error| failed(program, error.to_string()))?;
    match status.success() {
        true => Ok(()),
        false => Err(failed(program, format!("it ended with {status}; its output is above"))),
    }
}

fn failed(program: &'static str, reason: String) -> ImageError {
    ImageError::BuildFailed { program, reason }
}

fn is_installed(program: &str, env: &Environment) -> bool {
    let path = env.get(env::PATH).unwrap_or_default();
    path.split(':').any(|dir| Path::new(dir).join(program).is_file())
}
