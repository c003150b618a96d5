//! The command line, as flyctl has it: names, aliases, shorthands and defaults.
//!
//! Boolean flags take an optional `=true|false` as pflag's do. What is not here of flyctl's, commands and
//! flags, has a line in `answers.txt` instead: so scripts go on working or are told why not.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Run private apps on your own machines
#[derive(Debug, Parser)]
#[command(
    name = "fly",
    disable_version_flag = true,
    infer_subcommands = false,
    args_override_self = true
)]
pub(crate) struct Fly {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Token for a server that is reached over TCP
    #[arg(short = 't', long, global = true)]
    pub(crate) access_token: Option<String>,
    /// Verbose output
    #[arg(long, global = true)]
    verbose: bool,
    /// Print stack traces
    #[arg(long, global = true, hide = true)]
    debug: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell that will read them
    pub(crate) shell: clap_complete::Shell,
    /// Complete this name instead of `fly`, for those who have an alias
    #[arg(long, default_value = "fly")]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create and configure a new app from an image or a Dockerfile
    Launch(Box<Launch>),
    /// Deploy an app
    Deploy(Box<Deploy>),
    /// Manage IP addresses of apps
    #[command(subcommand, visible_alias = "ip")]
    Ips(Ips),
    /// Manage apps
    #[command(subcommand, visible_alias = "app")]
    Apps(Apps),
    /// Show an app's Machines and where they run
    Status(Status),
    /// Manage Machines
    #[command(subcommand, visible_aliases = ["machines", "m"])]
    Machine(Machine),
    /// Scale application resources
    #[command(subcommand)]
    Scale(crate::command::scale::Scale),
    /// Manage application secrets with the set and unset commands
    #[command(subcommand)]
    Secrets(crate::command::secrets::Secrets),
    /// View an app's logs
    Logs(Logs),
    /// Show and check an app's configuration
    #[command(subcommand)]
    Config(Config),
    /// Forward a local port to an app on its private network
    Proxy(Proxy),
    /// Print the completions for a shell, from the same definitions as this help
    Completion(Completion),
    /// Show the version
    Version,
}

/// Which app a command acts on.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AppArgs {
    /// Application name
    #[arg(short, long)]
    pub(crate) app: Option<String>,
    /// Path to application configuration file
    #[arg(short, long)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Json {
    /// JSON output
    #[arg(short, long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Yes {
    /// Accept all confirmations
    #[arg(short, long, alias = "auto-confirm", action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Org {
    /// The organization
    #[arg(short, long)]
    pub(crate) org: Option<String>,
}

/// What `launch` and `deploy` share.
#[derive(Debug, Clone, Args)]
pub(crate) struct Rollout {
    /// The image to deploy: a name that the local Docker has, docker-daemon:NAME, oci:DIR[:TAG],
    /// oci-archive:FILE or docker-archive:FILE
    #[arg(short, long)]
    pub(crate) image: Option<String>,
    /// Path to a Dockerfile
    #[arg(long)]
    pub(crate) dockerfile: Option<PathBuf>,
    /// Build argument NAME=VALUE
    #[arg(long)]
    pub(crate) build_arg: Vec<String>,
    /// Build stage to stop at
    #[arg(long)]
    pub(crate) build_target: Option<String>,
    /// Do not use the build cache
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    pub(crate) no_cache: bool,
    /// Environment variable NAME=VALUE
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    /// Create spare Machines for high availability
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = true)]
    pub(crate) ha: bool,
    /// Allocate a private IPv6 address and no public ones
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    pub(crate) flycast: bool,
    /// Allocate no public addresses
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    pub(crate) no_public_ips: bool,
    /// How Machines are replaced: rolling or immediate
    #[arg(long)]
    pub(crate) strategy: Option<String>,
    /// How long to wait for each Machine, such as 5m
    #[arg(long)]
    pub(crate) wait_timeout: Option<String>,
    /// How long leases last without refresh, such as 13s
    #[arg(long)]
    pub(crate) lease_timeout: Option<String>,
    /// How many Machines (1 or more) or which share of them (0 to 1) may be away at a time
    #[arg(long)]
    pub(crate) max_unavailable: Option<f64>,
    /// At most so many Machines at a time
    #[arg(long, default_value_t = 8)]
    pub(crate) max_concurrent: u32,
    /// Watch each Machine for a while after its start
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = true)]
    pub(crate) smoke_checks: bool,
    #[command(flatten)]
    pub(crate) vm: Vm,
}

/// Size of Machines.
#[derive(Debug, Clone, Args)]
pub(crate) struct Vm {
    /// Size preset, such as shared-cpu-1x
    #[arg(long)]
    pub(crate) vm_size: Option<String>,
    /// Memory: a number of MB, or with a unit (1gb)
    #[arg(long, alias = "memory")]
    pub(crate) vm_memory: Option<String>,
    /// Number of CPUs
    #[arg(long, alias = "cpus")]
    pub(crate) vm_cpus: Option<u32>,
    /// shared or performance
    #[arg(long, alias = "vm-cpukind")]
    pub(crate) vm_cpu_kind: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// Directory of the app; default is the current one
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) yes: Yes,
    /// Region for new Machines
    #[arg(long)]
    pub(crate) primary_region: Option<String>,
    /// Deploy to machines only in these process groups
    #[arg(long, value_delimiter = ',')]
    pub(crate) process_groups: Vec<String>,
    /// Change existing Machines only
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    pub(crate) update_only: bool,
    /// Return once the deployment has begun; accepted, and waits all the same
    #[arg(short, long, hide = true)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) rollout: Rollout,
}

#[derive(Debug, Args)]
pub(crate) struct Launch {
    #[command(flatten)]
    pub(crate) org: Org,
    /// Region for the app's Machines
    #[arg(short, long)]
    pub(crate) region: Option<String>,
    /// Configuration file to start from
    #[arg(short, long)]
    pub(crate) config: Option<PathBuf>,
    /// Name of the new app
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Choose a free name
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    pub(crate) generate_name: bool,
    /// Directory of the app
    #[arg(long, alias = "into", default_value = ".")]
    pub(crate) path: PathBuf,
    /// Use the existing configuration file without asking
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    pub(crate) copy_config: bool,
    /// Only create the app and its configuration file
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false)]
    pub(crate) no_deploy: bool,
    /// Port that the app listens on
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub(crate) internal_port: i64,
    /// What happens to idle Machines: off, stop or suspend
    #[arg(long, default_value = "stop")]
    pub(crate) auto_stop: String,
    /// Command that the Machines run instead of the image's
    #[arg(long)]
    pub(crate) command: Option<String>,
    #[command(flatten)]
    pub(crate) yes: Yes,
    #[command(flatten)]
    pub(crate) rollout: Rollout,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ips {
    /// List the addresses of an app
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        json: Json,
    },
    /// Allocate an IPv6 address
    AllocateV6 {
        #[command(flatten)]
        app: AppArgs,
        /// Allocate a private (Flycast) address
        #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
              default_missing_value = "true", default_value_t = false)]
        private: bool,
        /// Network whose Machines may call the address; only with --private
        #[arg(long)]
        network: Option<String>,
        #[command(flatten)]
        org: Org,
        /// Region of the address
        #[arg(short, long)]
        region: Option<String>,
    },
    /// Allocate an IPv4 address
    AllocateV4 {
        #[command(flatten)]
        app: AppArgs,
        /// Use the address that apps share
        #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
              default_missing_value = "true", default_value_t = false)]
        shared: bool,
        /// Region of the address
        #[arg(short, long)]
        region: Option<String>,
        #[command(flatten)]
        yes: Yes,
    },
    /// Release addresses of an app
    Release {
        /// The addresses
        #[arg(required = true)]
        addresses: Vec<String>,
        #[command(flatten)]
        app: AppArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Apps {
    /// List apps
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        org: Org,
        #[command(flatten)]
        json: Json,
        /// Names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Create an app
    Create {
        /// Name of the app
        app: Option<String>,
        /// Name of the app
        #[arg(long)]
        name: Option<String>,
        /// Choose a free name
        #[arg(long)]
        generate_name: bool,
        /// Private network of the app
        #[arg(long)]
        network: Option<String>,
        #[command(flatten)]
        org: Org,
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        json: Json,
        /// Accepted for compatibility
        #[arg(long, hide = true)]
        machines: bool,
        /// Write a fly.toml with the app's name
        #[arg(long)]
        save: bool,
    },
    /// Destroy apps
    #[command(visible_aliases = ["delete", "remove", "rm"])]
    Destroy {
        /// Names of the apps
        #[arg(required = true)]
        apps: Vec<String>,
        #[command(flatten)]
        yes: Yes,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) json: Json,
    /// Accepted for compatibility
    #[arg(long, hide = true)]
    all: bool,
    /// Accepted for compatibility
    #[arg(long, hide = true)]
    deployment: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Machine {
    /// List the Machines of an app
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        json: Json,
        /// IDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show one Machine
    Status {
        /// ID of the Machine
        id: Option<String>,
        #[command(flatten)]
        app: AppArgs,
        /// Show the Machine's configuration as JSON
        #[arg(short, long)]
        display_config: bool,
    },
    /// Start Machines
    Start {
        /// IDs of the Machines
        ids: Vec<String>,
        #[command(flatten)]
        app: AppArgs,
    },
    /// Stop Machines
    Stop {
        /// IDs of the Machines
        ids: Vec<String>,
        #[command(flatten)]
        app: AppArgs,
        /// Signal to send instead of the configured one
        #[arg(short, long)]
        signal: Option<String>,
        /// Seconds until the Machine is killed
        #[arg(long)]
        timeout: Option<u32>,
        /// Wait so long for the Machine to be stopped, such as 30s
        #[arg(short, long)]
        wait_timeout: Option<String>,
    },
    /// Suspend Machines: frozen where they are, with their memory
    Suspend {
        /// IDs of the Machines
        ids: Vec<String>,
        #[command(flatten)]
        app: AppArgs,
        /// Wait so long for the Machine to be suspended, such as 30s
        #[arg(short, long)]
        wait_timeout: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// Only this Machine
    #[arg(short, long, visible_alias = "instance", short_alias = 'i')]
    pub(crate) machine: Option<String>,
    /// Only this region
    #[arg(short, long)]
    pub(crate) region: Option<String>,
    /// Print what there is and end
    #[arg(short, long)]
    pub(crate) no_tail: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check the configuration file
    Validate {
        #[command(flatten)]
        app: AppArgs,
        /// Refuse sections and keys that are not known
        #[arg(short, long)]
        strict: bool,
        /// Print verdict, problems and hints as JSON
        #[arg(short, long)]
        json: bool,
    },
    /// Show the app's configuration
    #[command(visible_alias = "display")]
    Show {
        #[command(flatten)]
        app: AppArgs,
        /// Show the local file instead of the deployed one
        #[arg(long)]
        local: bool,
        /// Show TOML
        #[arg(long)]
        toml: bool,
        /// Add what each process group's Machines would be, as JSON
        #[arg(long, conflicts_with = "toml")]
        machines: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// LOCAL:REMOTE ports, or one port for both
    pub(crate) ports: String,
    /// Host on the app's network; default is APP.flycast
    pub(crate) host: Option<String>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// Address to listen on
    #[arg(short, long, default_value = "127.0.0.1")]
    pub(crate) bind_addr: String,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Fly> {
        Fly::try_parse_from(line.split(' ')).ok()
    }

    #[test]
    fn the_definition_is_consistent() {
        <Fly as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn booleans_take_an_optional_value_as_pflags_do() {
        let ha = |line: &str| match parsed(line)?.command {
            Command::Deploy(deploy) => Some(deploy.rollout.ha),
            _ => None,
        };
        assert_eq!(ha("fly deploy"), Some(true));
        assert_eq!(ha("fly deploy --ha=false"), Some(false));
        assert_eq!(ha("fly deploy --ha"), Some(true));
    }

    #[test]
    fn shorthands_can_be_grouped() {
        let both = |line: &str| match parsed(line)?.command {
            Command::Apps(Apps::Create { yes, json, .. }) => Some((yes.yes, json.json)),
            _ => None,
        };
        assert_eq!(both("fly apps create x -y -j"), Some((true, true)));
        assert_eq!(both("fly apps create x -yj"), Some((true, true)));
        assert_eq!(both("fly apps create x"), Some((false, false)));
    }

    #[test]
    fn aliases_are_understood() {
        for line in ["fly m ls -q", "fly ip ls", "fly app rm x -y", "fly launch --auto-confirm"] {
            assert!(parsed(line).is_some(), "{line}");
        }
    }
}
