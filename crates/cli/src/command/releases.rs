//! `releases` and `apps releases`.

use super::Context;
use crate::args::{AppArgs, Json};
use crate::failure::{Failure, Outcome};
use crate::render;
use clap::Args;
use jiff::Timestamp;
use perch_api::wire::Release;
use serde_json::{Value, json};

/// flyctl shows no more.
const RELEASES_MAX: usize = 25;

#[derive(Debug, Args)]
pub(crate) struct Releases {
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    json: Json,
    /// Show the image of each release
    #[arg(long)]
    image: bool,
}

pub(super) async fn run(context: &Context<'_>, args: Releases) -> Outcome {
    let app = context.app_name(&args.app)?;
    let releases = context.client.list_releases(&app, RELEASES_MAX).await;
    let mut releases = releases.map_err(|error| {
        Failure::from(error).context(format!("failed retrieving app releases {app}"))
    })?;
    releases.sort_by_key(|release| std::cmp::Reverse(release.version));
    if context.wants_json(&args.json) {
        let list: Vec<Value> = releases.iter().map(release_json).collect();
        return Ok(render::json(context.console, &list)?);
    }
    let mut headers = vec!["Version", "Status", "Description", "User", "Date"];
    if args.image {
        headers.push("Docker Image");
    }
    let now = Timestamp::now();
    let rows: Vec<_> = releases.iter().map(|release| row(release, args.image, now)).collect();
    render::table(context.console, "", &headers, &rows);
    Ok(())
}

/// Nobody describes a release here, so that column is empty.
fn row(release: &Release, image: bool, now: Timestamp) -> Vec<String> {
    let mut row = vec![
        format!("v{}", release.version),
        release.status.to_string(),
        String::new(),
        release.user.clone(),
        render::relative_time(&release.created_at, now),
    ];
    if image {
        row.push(release.image_ref.clone());
    }
    row
}

fn release_json(release: &Release) -> Value {
    json!({
        "ID": release.id,
        "Version": release.version,
        "Stable": release.stable,
        "InProgress": release.in_progress,
        "Reason": "",
        "Description": "",
        "Status": release.status,
        "DeploymentStrategy": release.strategy,
        "Metadata": null,
        "User": {"ID": "", "Name": release.user, "Email": release.user, "EnablePaidHobby": false},
        "EvaluationID": "",
        "CreatedAt": release.created_at,
        "ImageRef": release.image_ref,
    })
}
