//! The command line, as flyctl has it: names, aliases, shorthands and defaults.
//!
//! Flags are read as pflag reads them: boolean ones take an optional `=true|false`, the last of a
//! repeated one counts, and a value may begin with a hyphen. What is not here of flyctl's, commands and
//! flags, has a line in `answers.txt` instead: so scripts go on working or are told why not.

mod pflag;
mod rollout;

pub(crate) use pflag::parse_bool;
pub(crate) use rollout::{Only, Rollout, Vm};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
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
    /// Manage volumes: what Machines keep
    #[command(subcommand, visible_aliases = ["volume", "vol", "v"])]
    Volumes(crate::command::volumes::Volumes),
    /// View an app's logs
    Logs(Logs),
    /// Show and check an app's configuration
    #[command(subcommand)]
    Config(Config),
    /// Forward a local port to an app on its private network
    Proxy(Proxy),
    /// Print the completions for a shell, from the same definitions as this help
    Completion(Completion),
    /// Show the version of this program
    Version(crate::command::version::Version),
    /// Show organizations
    #[command(subcommand)]
    Orgs(crate::command::orgs::Orgs),
    /// Show what this server offers
    #[command(subcommand)]
    Platform(crate::command::platform::Platform),
    /// List regions, or those that an app runs in
    Regions(crate::command::regions::Regions),
    /// List releases of an app
    Releases(crate::command::releases::Releases),
    /// Show an app's services
    #[command(subcommand)]
    Services(crate::command::services::Services),
    /// Show health checks
    #[command(subcommand)]
    Checks(crate::command::checks::Checks),
    /// Ask the DNS server of an app's network
    Dig(crate::command::dig::Dig),
    /// Say why Machines are awake or asleep
    Why(crate::command::why::Why),
    /// Run programs in Machines
    #[command(subcommand)]
    Ssh(crate::command::ssh::Ssh),
    /// Show who you are to the server
    #[command(subcommand)]
    Auth(crate::command::auth::Auth),
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
    #[arg(short, long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Yes {
    /// Accept all confirmations
    #[arg(short, long, alias = "auto-confirm")]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Org {
    /// The organization
    #[arg(short, long)]
    pub(crate) org: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// Directory of the app; default is the current one
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) yes: Yes,
    /// Change existing Machines only
    #[arg(long)]
    pub(crate) update_only: bool,
    /// Do not run the release command
    #[arg(long)]
    pub(crate) skip_release_command: bool,
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
    #[arg(long)]
    pub(crate) generate_name: bool,
    /// Directory of the app
    #[arg(long, default_value = ".")]
    pub(crate) path: PathBuf,
    /// Use the existing configuration file without asking
    #[arg(long)]
    pub(crate) copy_config: bool,
    /// Only create the app and its configuration file
    #[arg(long)]
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
    /// Write the configuration as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the configuration as YAML
    #[arg(long)]
    pub(crate) yaml: bool,
    #[command(flatten)]
    pub(crate) yes: Yes,
    #[command(flatten)]
    pub(crate) rollout: Rollout,
    /// Arguments for flyctl's generators of Dockerfiles; there is none here
    #[arg(last = true, hide = true)]
    scanner: Vec<String>,
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
    /// Allocate the addresses that the app should have
    Allocate {
        #[command(flatten)]
        app: AppArgs,
        /// Region of the addresses
        #[arg(short, long)]
        region: Option<String>,
    },
    /// Allocate an IPv6 address
    AllocateV6 {
        #[command(flatten)]
        app: AppArgs,
        /// Allocate a private (Flycast) address
        #[arg(long)]
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
        #[arg(long)]
        shared: bool,
        /// Region of the address
        #[arg(short, long)]
        region: Option<String>,
        #[command(flatten)]
        yes: Yes,
    },
    /// List the private addresses of an app's Machines
    Private {
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        json: Json,
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
        apps: Vec<String>,
        #[command(flatten)]
        yes: Yes,
    },
    /// Restart an app's running Machines, one after the other
    Restart(crate::command::restart::Restart),
    /// List releases of an app
    Releases(crate::command::releases::Releases),
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
    /// Show it again and again
    #[arg(long)]
    pub(crate) watch: bool,
    /// Seconds between two looks of --watch
    #[arg(long, default_value_t = 5, allow_negative_numbers = true)]
    pub(crate) rate: i64,
}

/// The Machines that a command is about.
#[derive(Debug, Args)]
pub(crate) struct ManyMachines {
    /// IDs of the Machines
    pub(crate) ids: Vec<String>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) select: Select,
}

/// The Machine that a command is about.
#[derive(Debug, Args)]
pub(crate) struct OneMachine {
    /// ID of the Machine
    pub(crate) id: Option<String>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) select: Select,
}

/// The choice of Machines from a list, which happens without the flag too when none is named.
#[derive(Debug, Args)]
pub(crate) struct Select {
    /// Choose from a list
    #[arg(short, long, hide = true)]
    pub(crate) select: bool,
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
        #[command(flatten)]
        select: Select,
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
        #[command(flatten)]
        select: Select,
    },
    /// Stop Machines
    Stop {
        /// IDs of the Machines
        ids: Vec<String>,
        #[command(flatten)]
        app: AppArgs,
        /// Choose the Machines from a list
        #[arg(long, hide = true)]
        select: bool,
        /// Signal to send instead of the configured one
        #[arg(short, long)]
        signal: Option<String>,
        /// Seconds until the Machine is killed
        #[arg(long)]
        timeout: Option<i64>,
        /// Wait so long for the Machine to be stopped, such as 30s
        #[arg(short, long)]
        wait_timeout: Option<String>,
    },
    /// Run a program in a started Machine
    Exec(crate::command::machine::exec::Exec),
    /// Suspend Machines: frozen where they are, with their memory
    Suspend {
        /// IDs of the Machines
        ids: Vec<String>,
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        select: Select,
        /// Wait so long for the Machine to be suspended, such as 30s
        #[arg(short, long)]
        wait_timeout: Option<String>,
    },
    /// Run an image in a new Machine
    Run(Box<crate::command::machine::run::Run>),
    /// Create a Machine and do not start it
    Create(Box<crate::command::machine::run::Create>),
    /// Make a new Machine that is like another one
    Clone(Box<crate::command::machine::copy::Clone>),
    /// Change a Machine's config; it keeps its ID, and is started anew
    Update(Box<crate::command::machine::update::Update>),
    /// Restart Machines, one after the other
    Restart(crate::command::machine::restart::Restart),
    /// Destroy Machines that are stopped or suspended, or others by force
    #[command(visible_aliases = ["remove", "rm"])]
    Destroy(crate::command::machine::destroy::Destroy),
    /// Kill a Machine's program
    Kill(OneMachine),
    /// Give Machines no new requests, and never start them for one
    Cordon(ManyMachines),
    /// Give cordoned Machines requests again
    Uncordon(ManyMachines),
    /// Wait for a Machine to reach a state
    Wait(crate::command::machine::wait::Wait),
    /// See and clear leases on Machines
    #[command(subcommand, visible_alias = "lease")]
    Leases(crate::command::machine::leases::Leases),
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// Only this Machine
    #[arg(short, long, visible_alias = "instance", short_alias = 'i')]
    pub(crate) machine: Option<String>,
    /// Choose the Machine from a list
    #[arg(short, long)]
    pub(crate) select: bool,
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
        /// Show YAML
        #[arg(long)]
        yaml: bool,
        /// Show TOML
        #[arg(long)]
        toml: bool,
        /// Add what each process group's Machines would be, as JSON
        #[arg(long)]
        machines: bool,
    },
    /// Write the deployed configuration to a file
    Save(crate::command::save::Save),
    /// Show the environment variables that an app's configuration and secrets set
    Env(AppArgs),
}

#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// LOCAL:REMOTE ports, or one port for both; LOCAL may be the path of a Unix socket to make
    pub(crate) ports: String,
    /// Host on the app's network; default is its Flycast address, else APP.internal
    pub(crate) host: Option<String>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) org: Org,
    /// Choose one of the app's Machines from a list
    #[arg(short, long)]
    pub(crate) select: bool,
    /// Address to listen on
    #[arg(short, long, default_value = "127.0.0.1")]
    pub(crate) bind_addr: String,
    /// Accepted for compatibility; there is no tunnel whose progress could be shown
    #[arg(short, long)]
    quiet: bool,
    /// End when stdin is closed
    #[arg(long)]
    pub(crate) watch_stdin: bool,
}

/// Reads the arguments; the first is the program's name.
pub(crate) fn read(args: &[OsString]) -> Result<Fly, clap::Error> {
    let mut matches = pflag::like(Fly::command()).try_get_matches_from(args)?;
    Fly::from_arg_matches_mut(&mut matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Fly> {
        read(&line.split(' ').map(OsString::from).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn the_definition_is_consistent() {
        Fly::command().debug_assert();
        pflag::like(Fly::command()).debug_assert();
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
