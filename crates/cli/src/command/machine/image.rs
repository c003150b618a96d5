//! The image of a Machine that is made or changed by hand: one that the app has, one that is found on this side, or
//! one that is built here.

use super::super::Context;
use super::super::deploy::{bring, build, open_named, pairs, tag};
use super::flags::Shared;
use crate::failure::Outcome;
use crate::image::BuildOptions;
use crate::render;
use perch_api::wire::ImageInfo;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Finds or builds the image, brings it to the server and tells which one it is; answers what pins it. A reference that
/// begins with `.` or `/` is a directory to build in, as flyctl has it.
pub(super) async fn find(
    context: &Context<'_>,
    app: &str,
    reference: &str,
    flags: &Shared,
) -> Outcome<String> {
    let found = match in_repository(context, app, reference).await {
        Some(found) => found,
        None => bring(context, app, open(context, reference, flags)?).await?,
    };
    context.console.line(format!("Image: {}", found.reference));
    let size = render::decimal_size(found.compressed_size.parse().unwrap_or_default());
    context.console.line(format!("Image size: {size}\n"));
    Ok(found.reference)
}

/// What was pushed to the app before is there already.
async fn in_repository(context: &Context<'_>, app: &str, reference: &str) -> Option<ImageInfo> {
    reference.strip_prefix(app).filter(|rest| rest.starts_with([':', '@']))?;
    context.client.resolve_image(app, reference).await.ok()
}

fn open(
    context: &Context<'_>,
    reference: &str,
    flags: &Shared,
) -> Outcome<super::super::deploy::OpenImage> {
    let tag = tag(flags.image_label.as_ref());
    if !reference.starts_with(['.', '/']) {
        return open_named(context, reference, &context.env.dir, tag);
    }
    let given = flags.dockerfile.as_ref().map(|path| context.env.dir.join(path));
    let options = BuildOptions {
        dir: context.env.dir.join(Path::new(reference)),
        dockerfile: given.unwrap_or_else(|| PathBuf::from("Dockerfile")),
        args: pairs("build-arg", &flags.build_arg)?,
        secrets: BTreeMap::new(),
        labels: BTreeMap::new(),
        target: flags.build_target.clone(),
        no_cache: flags.no_build_cache,
        tag: format!("perch-build:{tag}").to_lowercase(),
    };
    build(context, &options, tag)
}
