//! `version`.

use super::Context;
use crate::args::Json;
use clap::Args;
use serde_json::json;

#[derive(Debug, Args)]
pub(crate) struct Version {
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(context: &Context<'_>, args: &Version) {
    let (version, os) = (env!("CARGO_PKG_VERSION"), std::env::consts::OS);
    // flyctl's is one line too.
    let line = match context.wants_json(&args.json) {
        true => json!({
            "Name": "fly",
            "Version": version,
            // Not known to the program; these are flyctl's words for that.
            "Commit": "<none>",
            "BranchName": "",
            "BuildDate": "0001-01-01T00:00:00Z",
            "OS": os,
            "Architecture": architecture(),
            "Environment": if cfg!(debug_assertions) { "development" } else { "production" },
        })
        .to_string(),
        false => format!("fly v{version} {os}/{} (perch)", architecture()),
    };
    context.console.line(line);
}

/// Go's names, which flyctl prints.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
