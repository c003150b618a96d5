//! The image of a deploy: named by flag or file, else built; then pushed and pinned.

use super::super::{Context, fill_random};
use crate::args::Rollout;
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::flytoml::Config;
use crate::image::{self, BuildOptions, Image, Source};
use crate::render;
use perch_api::wire::ImageInfo;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An image that was read on this side and not pushed yet.
#[derive(Debug)]
pub(in crate::command) struct OpenImage {
    image: Image,
    tag: String,
}

/// Finds the image by flyctl's order: `--image`, `[build] image`, else a Dockerfile (DE-01). Nothing on
/// the server changes. Blocks while a builder runs.
pub(in crate::command) fn open(
    context: &Context<'_>,
    config: &Config,
    rollout: &Rollout,
    base: &Path,
) -> Outcome<OpenImage> {
    context.console.styled_note(Style::Green, "==> Building image");
    let tag = tag(rollout.build.image_label.as_ref());
    let of_file = config.build.as_ref().and_then(|build| build.image.clone());
    // A flag's path starts from where the user is, the file's from the file.
    let named = match &rollout.image {
        Some(image) => Some((image.clone(), context.env.dir.clone())),
        None => of_file.map(|image| (image, base.to_owned())),
    };
    match named {
        Some((reference, dir)) => open_named(context, &reference, &dir, tag),
        None => build(context, &build_options(context, config, rollout, base, &tag)?, tag),
    }
}

/// The tag that is asked for, or a new one.
pub(in crate::command) fn tag(label: Option<&String>) -> String {
    let label = label.filter(|label| !label.is_empty());
    label.cloned().unwrap_or_else(|| format!("deployment-{}", ulid()))
}

/// Finds an image that is named.
pub(in crate::command) fn open_named(
    context: &Context<'_>,
    reference: &str,
    dir: &Path,
    tag: String,
) -> Outcome<OpenImage> {
    context.console.note(format!("Searching for image '{reference}' locally..."));
    let image = Source::parse(reference, dir).open(context.env).map_err(fetch_failed)?;
    Ok(OpenImage { image, tag })
}

/// Builds an image. Blocks while the builder runs.
pub(in crate::command) fn build(
    context: &Context<'_>,
    options: &BuildOptions,
    tag: String,
) -> Outcome<OpenImage> {
    let image = image::build(options, context.env).map_err(fetch_failed)?;
    Ok(OpenImage { image, tag })
}

/// Pushes an image to the app's repository and asks the server for the reference that pins it.
pub(in crate::command) async fn bring(
    context: &Context<'_>,
    app: &str,
    open: OpenImage,
) -> Outcome<ImageInfo> {
    let pushed = image::push(&context.client, context.console, app, &open.tag, open.image).await;
    let pushed = pushed.map_err(|failure| failure.context("could not push the image"))?;
    context.console.note(format!("image found: {}", pushed.digest));
    context.console.note(format!("image size: {}", render::decimal_size(pushed.size)));
    let reference = format!("{app}:{}", open.tag);
    let _waiting = context.console.waiting("Unpacking the image");
    let resolved = context.client.resolve_image(app, &reference).await;
    resolved.map_err(|error| Failure::from(error).context("the server does not accept the image"))
}

fn fetch_failed(error: image::ImageError) -> Failure {
    Failure::from(error).context("failed to fetch an image or build from source")
}

fn build_options(
    context: &Context<'_>,
    config: &Config,
    rollout: &Rollout,
    base: &Path,
    tag: &str,
) -> Outcome<BuildOptions> {
    let build = config.build.clone().unwrap_or_default();
    let flags = &rollout.build;
    let mut args = build.args;
    args.extend(pairs("build-arg", &flags.build_arg)?);
    let given = flags.dockerfile.as_ref().map(|path| context.env.dir.join(path));
    let dockerfile = given.or(build.dockerfile.map(PathBuf::from));
    Ok(BuildOptions {
        dir: base.to_owned(),
        dockerfile: dockerfile.unwrap_or_else(|| PathBuf::from("Dockerfile")),
        args,
        secrets: pairs("build-secret", &flags.build_secret)?,
        labels: pairs("label", &flags.label)?,
        target: flags.build_target.clone().or(build.build_target),
        no_cache: flags.no_cache,
        tag: format!("perch-build:{tag}").to_lowercase(),
    })
}

/// The values of a flag that is given as NAME=VALUE, any number of times.
pub(in crate::command) fn pairs(flag: &str, given: &[String]) -> Outcome<BTreeMap<String, String>> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::new(format!("--{flag} '{text}' is not NAME=VALUE"))
            .hint(format!("For example `--{flag} VERSION=1`"))),
    };
    given.iter().map(pair).collect()
}

/// A sortable name for a push: 48 bits of milliseconds and 80 random bits, in Crockford's base 32.
fn ulid() -> String {
    const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut bytes = [0; 16];
    fill_random(&mut bytes[6..]);
    bytes[..6].copy_from_slice(&(since.as_millis() as u64).to_be_bytes()[2..]);
    let number = u128::from_be_bytes(bytes);
    let letter = |index: u32| char::from(LETTERS[(number >> (125 - 5 * index)) as usize & 31]);
    (0..26).map(letter).collect()
}

impl OpenImage {
    /// The lowest port that the image's config exposes, if any.
    pub(in crate::command) fn exposed_port(&self) -> Option<u16> {
        self.image.exposed_port()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ulid_has_26_letters_and_sorts_by_time() {
        let one = ulid();
        assert_eq!(one.len(), 26);
        assert!(one.starts_with('0'), "{one}");
        assert!(one.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()));
    }
}
