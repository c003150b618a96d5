//! `perch server`: brings everything up, adopts what an earlier server left running, and serves.
//!
//! ```text
//!  lock ─► store ─► plane ─► images ─► adopt Machines ─► publish ─► proxy ─► API ─► "ready SOCKET"
//! ```
//!
//! SIGTERM or SIGINT ends server and proxy and leaves the Machines running; the next start adopts
//! them. Decisions are `core`'s; here they meet the host.

mod adoption;
mod api;
mod arming;
mod ballast;
mod blanks;
mod calling;
mod capacity;
mod certificate;
mod checks;
pub(crate) mod clock;
mod contents;
mod copying;
mod cpu;
mod delegation;
mod disk;
mod freezers;
mod guest_files;
pub(crate) mod handoff;
mod history;
mod host_ids;
mod images;
mod inside;
mod keeper;
mod launching;
mod leaving;
mod ledger;
mod limits;
mod lives;
pub(crate) mod lock;
mod machine;
mod members;
mod metrics;
mod paging;
mod platform_log;
mod proxy_link;
mod proxy_port;
mod pruning;
mod publishing;
mod questions;
mod records;
mod schedule;
mod seat;
mod secrets;
mod signing;
pub(crate) mod spans;
mod standby;
mod steps;
mod stored_config;
mod upgrade;
mod verdict;
mod views;
mod volumes;
mod workers;
mod world;

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use perch_api::server::Tls;
use perch_core::fault::{self, Point};
use perch_machine::{ImageLimits, ImageStore};
use perch_net::{NetError, Plane, PlaneConfig, Prefix};
use perch_store::Store;
use rustix::fs::{Mode, OFlags};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::command::Place;
use crate::config::{Config, check_region};
use crate::paths::Paths;
use crate::service_manager;
use ballast::Ballast;
pub(crate) use contents::{Contents, contents};
use handoff::{Asker, Handoff, Left};
use host_ids::HostIds;
pub(crate) use images::chain;
use keeper::{Change, Keeper};
use lock::DirLock;
use proxy_link::retired;
use proxy_port::{ProxyPort, Serving};
use secrets::vault::Vault;
use steps::Steps;
use upgrade::Successor;
use world::{Parts, World};

/// Name of the host's end of the link between host and data plane.
const OUTSIDE: &str = "perch0";
/// The link's addresses come from the range for benchmarks between networks (RFC 2544), which no
/// host has otherwise; the first pair is the default server's.
const HOST_LINKS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Pairs in that /15.
const HOST_LINKS_MAX: u32 = 1 << 16;
/// Nobody but root writes to what the server makes; programs in Machines inherit it.
const UMASK: u32 = 0o022;
/// Something of these lies in every directory that was a server's.
const MARKS: [&str; 4] = ["lock", "store.db", "machines", "tag"];
/// Descriptors: listeners, sockets, one pidfd per Machine and more.
const DESCRIPTORS_MAX: u64 = 65_536;
/// Three for each of some 1,300 Machines that run; 32 kB of the kernel's memory.
const DESCRIPTORS_READY: i32 = 4_096;
/// How long threads may take to end that work for nobody any more.
const RUNTIME_END_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
/// How long somebody waits for the proxy to be replaced: longer than one that stalls is waited for (60 s), so that what
/// became of it is known.
const PROXY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(90);
/// About ten times the weight of a usual program.
const NICE: i32 = -10;

/// Entry point of `perch server`.
pub(crate) fn main(options: Options) -> ExitCode {
    crate::logging::begin();
    let mut handoff = match Handoff::take() {
        Ok(handoff) => handoff,
        Err(error) => return crate::fail(&error),
    };
    // Their parent was this process, when it was the program that could not be replaced.
    if let Some(Handoff { note, .. }) = &handoff
        && note.pid == std::process::id()
        && let Err(error) = crate::process::reap_inherited()
    {
        tracing::warn!(%error, "children of the former server will stay as zombies");
    }
    match serve(options, &mut handoff) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(Handoff { asker, .. }) = handoff {
                asker.say(&format!("perch {}: {error:#}", env!("CARGO_PKG_VERSION")));
            }
            crate::fail(&error)
        }
    }
}

/// What a server may be told when it starts.
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Region of this host, three lower-case letters
    #[arg(long, value_name = "CODE")]
    region: Option<String>,
    /// Serve the API over TCP as well, to holders of tokens
    #[arg(long, value_name = "ADDR:PORT")]
    listen_api: Option<SocketAddr>,
    /// Replace the running server and its proxy by this program while everybody is served
    #[arg(long)]
    upgrade: bool,
    /// Say which release this is, after the configuration was read
    #[arg(long, hide = true)]
    trial: bool,
}

fn serve(options: Options, handoff: &mut Option<Handoff>) -> anyhow::Result<()> {
    let mut config =
        options.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
    if let Some(region) = options.region {
        check_region(&region)?;
        config.region = region;
    }
    config.listen_api = options.listen_api.or(config.listen_api);
    config.check_api()?;
    if options.trial {
        println!("{}", upgrade::answer_trial());
        return Ok(());
    }
    require_root()?;
    if options.upgrade {
        return upgrade::ask(&Paths::new(options.place.data_dir.as_deref())?);
    }
    // What is made below is made with these modes, whatever the caller's mask is.
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    let paths = Paths::new(options.place.data_dir.as_deref())?;
    let kept = match handoff {
        Some(handoff) => std::mem::take(&mut handoff.left),
        None => service_manager::kept().context("could not take what the service manager kept")?,
    };
    make_dirs(&paths)?;
    let (kept, lock) = take_lock(&paths, kept)?;
    anyhow::ensure!(
        !paths.restore_swap().exists(),
        "a restore into {} was interrupted; repeat it with --force: perch restore FILE --force",
        paths.data.display()
    );
    crate::doctor::require()?;
    raise_descriptor_limit();
    make_room_for_descriptors();
    go_first();
    perch_machine::memory::share_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    let ended = runtime.block_on(run(paths, config, kept, handoff))?;
    runtime.shutdown_timeout(RUNTIME_END_TIMEOUT);
    let Some((successor, mut left)) = ended else { return Ok(()) };
    left.push((handoff::LOCK.to_owned(), lock.try_clone().context("could not copy the lock")?));
    upgrade::hand_on(successor, left)
}

/// Takes the data directory's lock, or goes on with the one that was left.
fn take_lock(paths: &Paths, mut kept: Left) -> anyhow::Result<(Left, DirLock)> {
    let lock = match handoff::take_named(&mut kept, handoff::LOCK) {
        Some(left) => DirLock::inherit(&paths.lock(), left)?,
        None => DirLock::take(&paths.lock())?,
    };
    Ok((kept, lock))
}

fn require_root() -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let exe = std::env::current_exe().context("could not find this program's own path")?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    anyhow::bail!("perch server must run as root; run: sudo {} {}", exe.display(), args.join(" "))
}

/// The data directory is for root only; sockets may lie in a directory that others can enter.
fn make_dirs(paths: &Paths) -> anyhow::Result<()> {
    make_own(&paths.data)?;
    if paths.run != paths.data {
        fs::create_dir_all(&paths.run)
            .and_then(|()| fs::set_permissions(&paths.run, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("could not make {}", paths.run.display()))?;
    }
    fs::create_dir_all(paths.machines())
        .with_context(|| format!("could not make {}", paths.machines().display()))?;
    paths.keep_tag().context("could not write the tag of the data directory")
}

/// Makes a directory for root alone, or takes one that is root's already.
pub(crate) fn make_own(dir: &Path) -> anyhow::Result<()> {
    let failed = || format!("could not make {}", dir.display());
    fs::create_dir_all(dir.parent().unwrap_or(dir)).with_context(failed)?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => take_over(dir),
        made => made.with_context(failed),
    }
}

/// A directory that somebody else made stays as it is: its owner could change what root relies on.
fn take_over(dir: &Path) -> anyhow::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(dir, flags, Mode::empty());
    let opened = opened.with_context(|| format!("could not open {}", dir.display()))?;
    let owner = rustix::fs::fstat(&opened).context("could not look at the data directory")?.st_uid;
    anyhow::ensure!(
        owner == rustix::process::geteuid().as_raw(),
        "{0} belongs to user {owner}, not to root; choose another --data-dir, or run: chown root {0}",
        dir.display()
    );
    anyhow::ensure!(
        is_servers(dir)?,
        "{} is not empty and no server's; choose another --data-dir",
        dir.display()
    );
    rustix::fs::fchmod(&opened, Mode::RWXU)
        .with_context(|| format!("could not set the mode of {}", dir.display()))
}

fn is_servers(dir: &Path) -> anyhow::Result<bool> {
    let names: Result<Vec<OsString>, _> =
        fs::read_dir(dir).and_then(|all| all.map(|entry| Ok(entry?.file_name())).collect());
    let names = names.with_context(|| format!("could not list {}", dir.display()))?;
    // A file system of its own has this directory from the start.
    let empty = names.iter().all(|name| name == "lost+found");
    Ok(empty || names.iter().any(|name| MARKS.iter().any(|mark| name == mark)))
}

/// Server and proxy wait for no Machine: each does little, and everybody waits for it. What they start for others gives
/// this up again.
fn go_first() {
    if let Err(errno) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%errno, "server and proxy are no more urgent than Machines");
    }
}

pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let current = now.maximum.map_or(DESCRIPTORS_MAX, |most| most.min(DESCRIPTORS_MAX));
    if let Err(errno) =
        setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: now.maximum })
    {
        tracing::debug!(%errno, "the limit of descriptors stays as it is");
    }
}

/// Lets the kernel make its table of our descriptors now, while there is one thread. Whenever it doubles the table of a
/// process with several, all of them wait until all processors have passed a quiet state: 8 to 16 ms each time, which
/// were more than half of the time in which 100 Machines are taken over.
fn make_room_for_descriptors() {
    let far = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), DESCRIPTORS_READY - 1);
    if let Err(errno) = far {
        tracing::debug!(%errno, "the table of descriptors grows when it must");
    }
}

/// What this server's data plane is called and where it is linked to the host.
pub(crate) fn plane_config(paths: &Paths, config: &Config) -> PlaneConfig {
    let (outside, index) = match paths.tag() {
        None => (OUTSIDE.to_owned(), 0),
        Some(tag) => {
            let number = u32::from_str_radix(tag, 16).unwrap_or(1);
            (format!("perch-{tag}"), 1 + number % (HOST_LINKS_MAX - 1))
        }
    };
    let first = u32::from(HOST_LINKS) + index * 2;
    PlaneConfig {
        pin: paths.netns_pin(),
        outside,
        host_link: (Ipv4Addr::from(first), Ipv4Addr::from(first + 1)),
        public_v6: Prefix { addr: config.public_v6, len: 48 },
        shared_v4: config.shared_v4,
        dns: perch_core::address::RESOLVER,
        host_access: perch_net::HostAccess::All,
        call_limits: perch_net::CallLimits {
            connections_per_second: config.caller_connections_per_second,
            datagrams_per_second: config.caller_datagrams_per_second,
        },
    }
}

// long: the steps of a start, in their order
async fn run(
    paths: Paths,
    config: Config,
    kept: Left,
    handoff: &mut Option<Handoff>,
) -> anyhow::Result<Option<(Successor, Left)>> {
    // From here on no signal ends it unheard.
    let mut signals = Signals::new()?;
    let (proxy, answers) = ProxyPort::new();
    let world = tokio::task::spawn_blocking(move || bring_up(paths, config, proxy))
        .await
        .context("the start was interrupted")??;
    let mut steps = Steps::begin();
    open_networks(&world).await?;
    steps.done("networks");
    let is_listener = |name: &str| perch_proxy::Listeners::NAMES.contains(&name);
    let (kept, others): (Left, Left) = kept.into_iter().partition(|(name, _)| is_listener(name));
    world.inherit(others);
    let kept = service_manager::listeners(kept, &world.plane)
        .context("the service manager kept what is not ours")?;
    retired::take_back(&world);
    let standing = proxy_link::find(&world).await;
    let mut retired = retired::find(&world).await;
    volumes::recover(world.clone()).await;
    steps.done("proxy and volumes");
    let found = standing.iter().chain(retired.iter().filter_map(|(_, it)| it.as_ref()));
    let thawed = found.flat_map(proxy_link::thawed).collect();
    // One that was retired for a successor that never came up has the newest.
    let last = retired.iter_mut().rev().find_map(|(_, it)| it.as_mut());
    let kept = kept.or_else(|| Some(std::mem::take(&mut last?.1)));
    let retired = retired::place(&world, retired);
    adoption::adopt_all(&world, thawed).await?;
    retired::keep_found(&world, retired);
    steps.done("Machines and addresses");
    world.restock();
    let api = bind_api(&world)?;
    let tcp = bind_tcp(&world).await?;
    world.drop_left();
    let sockets = copies(&api, tcp.as_ref().map(|(listener, _)| listener))?;
    if let Err(error) = service_manager::keep_one(handoff::API, api.as_fd()) {
        tracing::warn!(%error, "the service manager does not keep the API's socket");
    }
    world.tracker.spawn({
        let world = world.clone();
        async move { world.lives.write_behind(&world.shutdown).await }
    });
    world.tracker.spawn({
        let world = world.clone();
        async move { world.refresh_host().await }
    });
    world.tracker.spawn(arming::keep(world.clone()));
    world.tracker.spawn(api::mark_interrupted(world.clone()));
    world.tracker.spawn(api::finish_removals(world.clone()));
    world.tracker.spawn(schedule::keep(world.clone()));
    world.tracker.spawn(standby::keep(world.clone()));
    world.tracker.spawn(signing::keep(world.clone()));
    world.tracker.spawn(spans::keep(world.clone()));
    world.tracker.spawn(pruning::prune(world.clone()));
    world.tracker.spawn(disk::watch(world.clone()));
    world.tracker.spawn(cpu::watch(world.clone()));
    world.tracker.spawn(calling::watch(world.clone()));
    world.tracker.spawn(volumes::keep_snapshots(world.clone()));
    world.tracker.spawn(world.images.clone().end_idle_uploads(world.shutdown.clone()));
    let keeper = tokio::spawn(proxy_link::keep(world.clone(), answers, standing, kept));
    if let Some(ending) = signals.before_a_proxy_serves(&world).await? {
        end(&world, keeper, tokio::spawn(std::future::ready(())), &ending).await?;
        return Ok(None);
    }
    steps.done("proxy told");
    let serving = tokio::spawn(serve_api(world.clone(), api, tcp));
    eprintln!("ready {}", world.paths.api_socket().display());
    service_manager::ready().context("could not tell the service manager")?;
    // To start takes twice the memory that is needed afterwards.
    world.tracker.spawn_blocking(perch_machine::memory::give_back);
    let former = greet_former(handoff.take()).await;
    world.tracker.spawn(renew_proxy(world.clone(), former));
    let ending = signals.next(&world).await;
    let mut left = sockets;
    if let Ending::Upgrade(_) = ending {
        left.extend(world.inside.leave());
    }
    let listeners = end(&world, keeper, serving, &ending).await?;
    left.extend(listeners.into_iter().flat_map(perch_proxy::Listeners::into_named));
    match ending {
        Ending::Upgrade(successor) => Ok(Some((*successor, left))),
        Ending::Everything | Ending::ServerAlone => Ok(None),
    }
}

/// The server whose place this one takes, and who asked for that.
type Former = Option<(handoff::Note, Asker)>;

/// Tells it that this one serves, and waits until it has ended: what speaks for the service is this process then.
async fn greet_former(handoff: Option<Handoff>) -> Former {
    let Handoff { note, asker, ready, .. } = handoff?;
    fault::pass(Point::ServerSucceeds);
    let greeted = tokio::task::spawn_blocking(move || {
        let Some(mut ready) = ready else { return Ok(()) };
        ready.write_all(b"R")?;
        ready.read(&mut [0]).map(drop)
    });
    if let Ok(Err(error)) = greeted.await {
        tracing::debug!(%error, "the former server has ended");
    }
    Some((note, asker))
}

fn tell_asker(former: Former, proxy: &str) {
    let Some((note, asker)) = former else { return };
    let (own, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
    match note.failure {
        None => asker.done(&format!(
            "perch {} (pid {}) was replaced by perch {own} (pid {pid}); {proxy}",
            note.version, note.pid
        )),
        Some(why) => asker.failed(&format!("not upgraded: {why}; perch {own} (pid {pid}) goes on")),
    }
}

/// Gives the listeners of an earlier server's proxy to another one, of this program, if it is to be so, and says what
/// became of it. Which proxy serves is known by now, however late it has greeted.
async fn renew_proxy(world: Arc<World>, former: Former) {
    let is_upgrade = former.as_ref().is_some_and(|(note, _)| note.failure.is_none());
    let serving = *world.proxy.serving().borrow();
    let said = match serving.filter(|it| proxy_link::is_outdated(*it, is_upgrade)) {
        None => "its proxy was started anew".to_owned(),
        Some(Serving { pid, .. }) => {
            // Where nobody waits to hear of it, it is not too late for it at any time.
            let limit = if former.is_some() { PROXY_TIMEOUT } else { std::time::Duration::MAX };
            tokio::select! {
                said = replace_proxy(&world, pid, limit) => said,
                () = world.shutdown.cancelled() => {
                    "it ends before its proxy is replaced".to_owned()
                }
            }
        }
    };
    tell_asker(former, &said);
}

/// What became of it.
async fn replace_proxy(world: &World, old: u32, limit: std::time::Duration) -> String {
    let mut serving = world.proxy.serving();
    world.proxy.replace(old);
    let other = serving.wait_for(|now| now.is_some_and(|now| now.pid != old));
    let new = match tokio::time::timeout(limit, other).await {
        Ok(new) => new.ok().and_then(|new| *new).map_or(0, |new| new.pid),
        Err(_) if world.paths.retired_socket(old).exists() => {
            return format!(
                "its proxy {old} was retired, and no other one serves yet; see the log"
            );
        }
        Err(_) => {
            // Nor is it later, when nobody hears of it.
            world.proxy.call_off_replacement(old);
            return format!(
                "its proxy {old} could not be replaced and goes on; see the log, and upgrade again"
            );
        }
    };
    if world.proxy.call_off_replacement(old) {
        return format!("its proxy {old} ended before it could be replaced, and {new} was started");
    }
    let left = match world.proxy.left_by(old, limit).await {
        Some(left) => format!("{left} connections end in the former one"),
        None => "the former one does not say what it has".to_owned(),
    };
    format!("proxy {old} by {new}, {left}")
}

fn bring_up(paths: Paths, config: Config, proxy: ProxyPort) -> anyhow::Result<Arc<World>> {
    let ballast = Ballast::given_up(paths.ballast());
    let mut steps = Steps::begin();
    let store = Store::open(&paths.store())?;
    let keeper = Keeper::load(store, ballast)?;
    steps.done("store");
    let host_access = members::host_access(config.host_access)?;
    let plane = PlaneConfig { host_access, ..plane_config(&paths, &config) };
    let plane = Plane::ensure(&plane).map_err(no_plane)?;
    steps.done("data plane");
    let host_ids = HostIds::of_this_host(paths.tag(), config.host_ids.as_ref())?;
    let vault = Vault::new(secrets_key(&paths, &config)?);
    let signing = signing::Signing::open(paths.signing_key())?;
    let images = open_images(&paths, &keeper, &host_ids)?;
    steps.done("images");
    let init_layer = perch_machine::install_init(&paths.init(), crate::embedded::INIT)
        .context("could not write the Machines' init")?;
    let cgroup_parent = delegation::settle(&paths).context("could not settle in the cgroups")?;
    ensure_default_networks(&keeper, &config)?;
    let events = history::Writer::start().context("could not start a thread")?;
    let ledger = spans::ledger(&paths.data, &config).context("could not start a thread")?;
    let ceilings = perch_machine::Ceilings::above(&cgroup_parent)
        .context("could not find limits above the Machines")?;
    let (memory, reserve) = (config.memory, config.memory_reserve);
    let capacity = capacity::Capacity { memory, reserve, ceilings };
    let pager = paging::Pager::start(config.page_out_after.0, capacity)
        .context("could not start a thread")?;
    keeper.renew_ballast();
    crate::swap::resume(&paths);
    steps.done("the rest");
    Ok(World::new(Parts {
        paths,
        config,
        keeper,
        images,
        plane,
        init_layer,
        cgroup_parent,
        host_ids,
        proxy,
        vault,
        signing,
        events,
        ledger,
        pager,
    }))
}

/// Where the key of the secrets is: not with what it seals.
fn secrets_key(paths: &Paths, config: &Config) -> anyhow::Result<PathBuf> {
    let file = match &config.secrets_key {
        Some(file) => crate::paths::real(file)?,
        None => paths.secrets_key(),
    };
    anyhow::ensure!(
        !file.starts_with(&paths.data),
        "`secrets_key` {} lies in the data directory; who gets a copy of that would get the key with it: choose \
         another place",
        file.display()
    );
    Ok(file)
}

/// Two servers with the same public addresses would take each other's callers.
fn no_plane(error: NetError) -> anyhow::Error {
    let taken = matches!(error, NetError::RouteTaken { .. });
    let what = if taken {
        "could not set the network up; give this server public addresses of its own (keys `public_v6` and \
         `shared_v4` of its configuration), or take the other one down (`perch down`)"
    } else {
        "could not set the network up"
    };
    anyhow::Error::new(error).context(what)
}

/// Opens the image store and finds out how Machines get their files.
fn open_images(paths: &Paths, keeper: &Keeper, ids: &HostIds) -> anyhow::Result<images::Images> {
    let store = ImageStore::open(&paths.images(), ImageLimits::standard())?;
    // What a crash left of apps that are gone; of others nothing, since their Machines may run on it.
    if store.has_shifted()? {
        store.retain_shifted(&bases_in_use(paths, keeper, ids))?;
    }
    store.retain_apps(&keeper.read().apps.keys().cloned().collect())?;
    let found = crate::ids::choose(&paths.images()).context("no Machine's files can be mounted")?;
    tracing::info!(owners = crate::ids::in_words(&found), "Machines' files");
    Ok(images::Images::new(store, found.ids))
}

/// First ids of all ranges on which Machines may run.
fn bases_in_use(paths: &Paths, keeper: &Keeper, ids: &HostIds) -> Vec<u32> {
    let catalog = keeper.read();
    let apps = catalog.apps.values().flat_map(|app| ids.all(app.uid_slot));
    // Runs that another configuration began.
    let machines = catalog.machines.keys();
    let runs = machines.filter_map(|id| perch_machine::uid_base(&paths.machine(id)));
    apps.chain(runs).collect()
}

/// Every organization has a default network (PN-01).
fn ensure_default_networks(keeper: &Keeper, config: &Config) -> anyhow::Result<()> {
    for org in &config.organizations {
        keeper.write_blocking(|catalog| {
            if catalog.networks.contains_key(&(org.clone(), "default".to_owned())) {
                return Ok((Vec::new(), ()));
            }
            let network = api::plan_network(catalog, org, "default", clock::random())?;
            Ok((vec![Change::PutNetwork(network)], ()))
        })?;
    }
    Ok(())
}

async fn open_networks(world: &Arc<World>) -> anyhow::Result<()> {
    let networks: Vec<_> = world.keeper.read().networks.values().cloned().collect();
    for network in networks {
        api::open_network(world, &network).await?;
    }
    Ok(())
}

/// Makes the API's socket: for root and the group `perch`, if there is one, else for root alone.
fn bind_api(world: &World) -> anyhow::Result<UnixListener> {
    let path = world.paths.api_socket();
    let listener = match left_api(world, &path) {
        Some(listener) => listener,
        None => {
            if path.exists() {
                fs::remove_file(&path)
                    .with_context(|| format!("could not replace {}", path.display()))?;
            }
            UnixListener::bind(&path)
                .with_context(|| format!("could not bind {}", path.display()))?
        }
    };
    let group = members::group_id();
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("could not set the mode of {}", path.display()))?;
    std::os::unix::fs::chown(&path, None, group)
        .with_context(|| format!("could not give {} to the group perch", path.display()))?;
    Ok(listener)
}

/// The socket that a server before this one has left, if callers still find it.
fn left_api(world: &World, path: &Path) -> Option<UnixListener> {
    let left = std::os::unix::net::UnixListener::from(world.take_left(handoff::API)?);
    let is_found = path.exists() && left.local_addr().ok()?.as_pathname() == Some(path);
    left.set_nonblocking(true).ok()?;
    is_found.then(|| UnixListener::from_std(left).ok()).flatten()
}

/// The same of the one over TCP, if it is where it is wanted now.
fn left_tcp(world: &World, address: SocketAddr) -> Option<TcpListener> {
    let left = std::net::TcpListener::from(world.take_left(handoff::API_TCP)?);
    let bound = left.local_addr().ok()?;
    let is_wanted = bound.ip() == address.ip() && [0, bound.port()].contains(&address.port());
    left.set_nonblocking(true).ok()?;
    is_wanted.then(|| TcpListener::from_std(left).ok()).flatten()
}

/// What the next server would be left of the API's sockets.
fn copies(api: &UnixListener, tcp: Option<&TcpListener>) -> anyhow::Result<Left> {
    let tcp = tcp.map(|tcp| (handoff::API_TCP, tcp.as_fd()));
    let both = std::iter::once((handoff::API, api.as_fd())).chain(tcp);
    let copies = both.map(|(name, fd)| Ok((name.to_owned(), fd.try_clone_to_owned()?)));
    copies.collect::<std::io::Result<_>>().context("could not copy the API's sockets")
}

/// Listens for holders of tokens, if wanted, and says where: the port may be ours to choose.
async fn bind_tcp(world: &World) -> anyhow::Result<Option<(TcpListener, Option<Tls>)>> {
    let Some(address) = world.config.listen_api else { return Ok(None) };
    let tls = world.config.api_tls()?;
    let listener = match left_tcp(world, address) {
        Some(listener) => listener,
        None => TcpListener::bind(address)
            .await
            .with_context(|| format!("could not listen for the API at {address}"))?,
    };
    let bound = listener.local_addr().context("could not read the API's own address")?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    eprintln!("listening on {scheme}://{bound}");
    Ok(Some((listener, tls)))
}

/// Serves the API on the socket, and on TCP if wanted, until the server ends.
async fn serve_api(
    world: Arc<World>,
    socket: UnixListener,
    tcp: Option<(TcpListener, Option<Tls>)>,
) {
    let backend = Arc::new(api::Api::new(world.clone()));
    let ended = || world.closing.clone().cancelled_owned();
    let local = perch_api::server::serve(socket, backend.clone(), ended());
    match tcp {
        Some((listener, tls)) => {
            let fresh = certificate::keep_fresh(world.clone(), tls.clone());
            let far = perch_api::server::serve_tcp(listener, tls, backend, ended());
            tokio::join!(local, far, fresh);
        }
        // SIGHUP is not the end of a server without a certificate either.
        None => drop(tokio::join!(local, certificate::keep_fresh(world.clone(), None))),
    }
}

/// How a server ends.
#[derive(Debug)]
enum Ending {
    /// With its proxies; what is in flight in them has some seconds.
    Everything,
    /// The proxies go on until the next server replaces them.
    ServerAlone,
    /// Another program takes its place.
    Upgrade(Box<Successor>),
}

/// The signals that end a server.
struct Signals {
    term: Signal,
    int: Signal,
    usr1: Signal,
    usr2: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let watch =
            |kind, name| signal(kind).with_context(|| format!("could not watch for {name}"));
        Ok(Self {
            term: watch(SignalKind::terminate(), "SIGTERM")?,
            int: watch(SignalKind::interrupt(), "SIGINT")?,
            usr1: watch(SignalKind::user_defined1(), "SIGUSR1")?,
            usr2: watch(SignalKind::user_defined2(), "SIGUSR2")?,
        })
    }

    /// Waits until a proxy serves, which one that hangs may never do, or somebody wants the server to end before.
    async fn before_a_proxy_serves(&mut self, world: &World) -> anyhow::Result<Option<Ending>> {
        let mut serving = world.proxy.serving();
        tokio::select! {
            served = serving.wait_for(Option::is_some) => {
                served.context("the proxy did not come up")?;
                Ok(None)
            }
            _ = self.term.recv() => Ok(Some(Ending::Everything)),
            _ = self.int.recv() => Ok(Some(Ending::Everything)),
            _ = self.usr1.recv() => Ok(Some(Ending::ServerAlone)),
        }
    }

    async fn next(&mut self, world: &Arc<World>) -> Ending {
        loop {
            tokio::select! {
                _ = self.term.recv() => return Ending::Everything,
                _ = self.int.recv() => return Ending::Everything,
                _ = self.usr1.recv() => return Ending::ServerAlone,
                _ = self.usr2.recv() => {}
            }
            let paths = world.paths.clone();
            let prepared = tokio::task::spawn_blocking(move || upgrade::prepare(&paths)).await;
            if let Ok(Some(successor)) = prepared {
                return Ending::Upgrade(Box::new(successor));
            }
        }
    }
}

/// Ends in order: nothing new, then who was accepted, then the tasks, then what they left to write. Machines go on. Answers the listeners.
async fn end(
    world: &Arc<World>,
    keeper: tokio::task::JoinHandle<Option<perch_proxy::Listeners>>,
    serving: tokio::task::JoinHandle<()>,
    ending: &Ending,
) -> anyhow::Result<Option<perch_proxy::Listeners>> {
    tracing::info!("ending; Machines go on");
    let is_end_of_all = matches!(ending, Ending::Everything);
    world.closing.cancel();
    serving.await.context("the API ended badly")?;
    world.shutdown.cancel();
    world.pager.end();
    let listeners = keeper.await.context("the proxy's keeper ended badly")?;
    if is_end_of_all {
        // Not before: until now another one may have got its place.
        end_proxies(proxy_link::living(world), retired::processes(world)).await?;
    }
    world.tracker.close();
    world.tracker.wait().await;
    world.flush_events().await;
    world.flush_ledger().await;
    if !is_end_of_all {
        return Ok(listeners);
    }
    match fs::remove_file(world.paths.api_socket()) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("could not remove the API's socket"),
    }
}

async fn end_proxies(current: Option<Arc<OwnedFd>>, retired: Vec<OwnedFd>) -> anyhow::Result<()> {
    let all = current.into_iter().chain(retired.into_iter().map(Arc::new));
    let endings: Vec<_> =
        all.map(|proxy| tokio::task::spawn_blocking(move || proxy_link::end(&proxy))).collect();
    for ending in endings {
        ending.await.context("could not wait for the proxy")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::command::tests::parse;

    #[test]
    fn options_are_read_in_both_forms() {
        let parse = |words: &[&str]| match parse(words) {
            Ok(Command::Server(options)) => options,
            other => panic!("{other:?}"),
        };
        let options = parse(&["server", "--data-dir", "/d", "--region=fra"]);
        let region = options.region.as_deref();
        assert_eq!((options.place.data_dir, region), (Some("/d".into()), Some("fra")));
        let address = parse(&["server", "--listen-api", "[::1]:4280"]).listen_api;
        assert_eq!(address, "[::1]:4280".parse().ok());
    }

    #[test]
    fn two_servers_have_links_and_addresses_of_their_own() {
        let config = |dir: &str| {
            plane_config(&Paths::new(Some(Path::new(dir))).expect("short"), &Config::default())
        };
        let (a, b) = (config("/a"), config("/b"));
        assert_ne!(a.outside, b.outside);
        assert_ne!(a.host_link, b.host_link);
        assert!(a.outside.len() <= 15);
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_taken_over() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("data");
        let mode =
            |dir: &Path| fs::metadata(dir).expect("it is there").permissions().mode() & 0o777;
        make_own(&dir).expect("it can be made");
        assert_eq!(mode(&dir), 0o700);
        fs::write(dir.join("precious"), "").expect("it can be written");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("ours");
        let error = make_own(&dir).expect_err("not a server's").to_string();
        assert!(error.contains("not empty") && error.contains("--data-dir"), "{error}");
        fs::write(dir.join("store.db"), "").expect("it can be written");
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).expect("a link");
        assert!(make_own(&link).is_err(), "a link was followed");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&dir, Some(65_534), None).expect("we are root");
            let error = make_own(&dir).expect_err("not root's").to_string();
            assert!(error.contains("user 65534") && error.contains("chown root"), "{error}");
            assert_eq!(mode(&dir), 0o755, "its mode was changed");
            std::os::unix::fs::chown(&dir, Some(0), None).expect("we are root");
            make_own(&dir).expect("root's own, and a server's");
            assert_eq!(mode(&dir), 0o700);
        }
    }
}
