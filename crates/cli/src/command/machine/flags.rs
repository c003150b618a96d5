//! The flags that `machine run`, `create` and `update` share. Those of flyctl that are not here have a line in
//! `answers.txt`.

use crate::args::{AppArgs, Vm, parse_bool};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Shared {
    #[command(flatten)]
    pub(super) app: AppArgs,
    /// Do not wait for health checks
    #[arg(long)]
    pub(super) detach: bool,
    /// Publish a port: PORT[:MACHINE_PORT][/PROTOCOL[:HANDLER]...], such as 443:8080/tcp:http:tls; the handler - takes
    /// the service away
    #[arg(short, long, value_delimiter = ',')]
    pub(super) port: Vec<String>,
    /// Environment variable NAME=VALUE
    #[arg(short, long)]
    pub(super) env: Vec<String>,
    /// Command that replaces the image's entrypoint
    #[arg(long)]
    pub(super) entrypoint: Option<String>,
    /// Path to a Dockerfile, which is built
    #[arg(long)]
    pub(super) dockerfile: Option<PathBuf>,
    /// Build argument NAME=VALUE
    #[arg(long, hide = true)]
    pub(super) build_arg: Vec<String>,
    /// Tag of the image in the app's repository; default is deployment-ID
    #[arg(long, hide = true)]
    pub(super) image_label: Option<String>,
    /// Build stage to stop at
    #[arg(long, hide = true)]
    pub(super) build_target: Option<String>,
    /// Do not use the build cache
    #[arg(long, hide = true)]
    pub(super) no_build_cache: bool,
    /// A Machine's config as JSON, or a file of it whose name ends in .json
    #[arg(long)]
    pub(super) machine_config: Option<String>,
    /// Metadata NAME=VALUE
    #[arg(short, long)]
    pub(super) metadata: Vec<String>,
    /// Start the Machine once in each period if it does not run: hourly, daily, weekly or monthly
    #[arg(long)]
    pub(super) schedule: Option<String>,
    /// Do not register the Machine's address in DNS
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = parse_bool, hide_possible_values = true)]
    pub(super) skip_dns_registration: Option<bool>,
    /// Whether a request starts the Machine when it sleeps
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = parse_bool, hide_possible_values = true)]
    pub(super) autostart: Option<bool>,
    /// What happens to the Machine when it is idle: off, stop or suspend
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "stop")]
    pub(super) autostop: Option<String>,
    /// When to start again what ended: no, always or on-failure
    #[arg(long)]
    pub(super) restart: Option<String>,
    /// IDs of Machines: this one is not started until one of them has failed for good
    #[arg(long, value_delimiter = ',')]
    pub(super) standby_for: Option<Vec<String>>,
    /// File /path/inside=PATH with the content of a file here
    #[arg(long)]
    pub(super) file_local: Vec<String>,
    /// File /path/inside=TEXT with this content
    #[arg(long)]
    pub(super) file_literal: Vec<String>,
    /// File /path/inside=SECRET with the content of a secret, which is base64
    #[arg(long)]
    pub(super) file_secret: Vec<String>,
    #[command(flatten)]
    pub(super) vm: Vm,
}
