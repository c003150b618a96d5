//! The flags that `deploy` and `launch` share. Those of flyctl that are not here have a line in
//! `answers.txt`.

use clap::Args;
use std::path::PathBuf;

/// What `launch` and `deploy` share.
#[derive(Debug, Clone, Args)]
pub(crate) struct Rollout {
    /// The image to deploy: a name that the local Docker has, docker-daemon:NAME, oci:DIR[:TAG],
    /// oci-archive:FILE or docker-archive:FILE
    #[arg(short, long)]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) build: BuildFlags,
    /// Environment variable NAME=VALUE
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    /// Create spare Machines for high availability
    #[arg(long, default_value = "true")]
    pub(crate) ha: bool,
    /// Allocate a private IPv6 address and no public ones
    #[arg(long)]
    pub(crate) flycast: bool,
    /// Allocate no public addresses
    #[arg(long)]
    pub(crate) no_public_ips: bool,
    /// Region for new Machines
    #[arg(long)]
    pub(crate) primary_region: Option<String>,
    #[command(flatten)]
    pub(crate) only: Only,
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
    #[arg(long, default_value_t = MAX_CONCURRENT)]
    pub(crate) max_concurrent: u32,
    /// As --max-concurrent, which comes first
    #[arg(long, hide = true)]
    immediate_max_concurrent: Option<u32>,
    /// Watch each Machine for a while after its start
    #[arg(long, default_value = "true")]
    pub(crate) smoke_checks: bool,
    /// Do not look whether the new Machines do what they should
    #[arg(long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) vm: Vm,
    /// The initial size in GB for volumes created on first deploy
    #[arg(long, default_value_t = 0)]
    pub(crate) volume_initial_size: u64,
}

const MAX_CONCURRENT: u32 = 8;

/// How an image is built.
#[derive(Debug, Clone, Args)]
pub(crate) struct BuildFlags {
    /// Path to a Dockerfile
    #[arg(long)]
    pub(crate) dockerfile: Option<PathBuf>,
    /// Build argument NAME=VALUE
    #[arg(long)]
    pub(crate) build_arg: Vec<String>,
    /// Build secret NAME=VALUE
    #[arg(long)]
    pub(crate) build_secret: Vec<String>,
    /// Build stage to stop at
    #[arg(long)]
    pub(crate) build_target: Option<String>,
    /// Label of the image NAME=VALUE
    #[arg(long)]
    pub(crate) label: Vec<String>,
    /// Do not use the build cache
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Tag of the image in the app's repository; default is deployment-ID
    #[arg(long)]
    pub(crate) image_label: Option<String>,
    /// Build the image and do not deploy it
    #[arg(long)]
    pub(crate) build_only: bool,
    /// Push the image, with --build-only too
    #[arg(long)]
    pub(crate) push: bool,
}

/// Which Machines a deploy changes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Only {
    /// Change Machines in these regions only
    #[arg(long, alias = "only-regions", value_delimiter = ',')]
    pub(crate) regions: Vec<String>,
    /// Change no Machine in these regions
    #[arg(long, value_delimiter = ',')]
    pub(crate) exclude_regions: Vec<String>,
    /// Change these Machines only
    #[arg(long, value_delimiter = ',')]
    pub(crate) only_machines: Vec<String>,
    /// Change all Machines but these
    #[arg(long, value_delimiter = ',')]
    pub(crate) exclude_machines: Vec<String>,
    /// Change Machines of these process groups only
    #[arg(long, value_delimiter = ',')]
    pub(crate) process_groups: Vec<String>,
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
    pub(crate) vm_cpus: Option<i64>,
    /// shared or performance
    #[arg(long, alias = "vm-cpukind")]
    pub(crate) vm_cpu_kind: Option<String>,
}

impl Rollout {
    /// How many Machines are changed at a time.
    pub(crate) fn concurrent_max(&self) -> u32 {
        match self.immediate_max_concurrent {
            Some(count) if self.max_concurrent == MAX_CONCURRENT => count,
            _ => self.max_concurrent,
        }
    }
}

impl Vm {
    /// Whether any size is named.
    pub(crate) fn is_given(&self) -> bool {
        let texts = [&self.vm_size, &self.vm_memory, &self.vm_cpu_kind];
        self.vm_cpus.is_some() || texts.iter().any(|text| text.is_some())
    }
}
