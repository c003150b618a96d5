//! `launch`: name, organization, region and image become an app, its `fly.toml`, and a first deploy.
//!
//! The image is read before the app is made, and an app of which the server accepts no Machine (its
//! image is refused, say) is removed again: a launch that fails early leaves nothing behind.

use super::deploy::{self, Job, OpenImage, Options};
use super::{Context, apps, config as config_command};
use crate::args::{Launch, Rollout};
use crate::env;
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, AutoStop, Build, Config, Service, Vm};
use crate::prompt;
use perch_api::wire::{AddressIntent, App, CreateApp, ImageInfo, MachineFilter};
use perch_core::deploy::Scope;
use std::path::{Path, PathBuf};

/// What an app listens on when nobody says (DE-64).
const PORT_DEFAULT: i64 = 8080;
const NAME_CHARS_MAX: usize = 63;
const GIVEN: &str = "specified on the command line";
const OF_FILE: &str = "from your fly.toml";
const CHOSEN: &str = "chosen by you";

/// What is about to be made.
struct Plan {
    name: String,
    name_source: &'static str,
    org: String,
    org_source: &'static str,
    region: String,
    region_source: &'static str,
    size_source: &'static str,
    config: Config,
    path: PathBuf,
}

pub(super) async fn run(context: &Context<'_>, args: Launch) -> Outcome {
    let env = super::entered(context.env, &args.path)?;
    let context = context.entering(&env);
    let existing = existing_config(&context, &args)?;
    let plan = make_plan(&context, &args, existing).await?;
    let image = match args.no_deploy && args.rollout.image.is_none() {
        // Nothing to read yet: the image is built when it is deployed.
        true => None,
        false => Some(open_image(&context, &plan.config, &args.rollout)?),
    };
    let config = complete(&args, plan.config.clone(), image.as_ref(), &env.dir)?;
    let plan = Plan { config, ..plan };
    announce(&context, &plan);
    let plan = match args.yes.yes {
        true => plan,
        false => tweaked(&context, plan).await?,
    };
    let _made = context.interrupt.hold();
    context.interrupt.check()?;
    let app = create_app(&context, &args, &plan).await?;
    let image = match image {
        Some(image) => push_or_undo(&context, &app, image).await?,
        None => None,
    };
    let new_file = !plan.path.exists();
    write_config(&context, &plan)?;
    let loaded = flytoml::load(&plan.path)?;
    config_command::report(&context, &loaded)?;
    match image {
        Some(image) if !args.no_deploy => {
            let name = app.name.clone();
            let result = first_deploy(&context, &args, app, loaded.config, image).await;
            if result.is_err() && undo(&context, &name).await && new_file {
                std::fs::remove_file(&plan.path)?;
            }
            result
        }
        _ => {
            context.console.line("Your app is ready! Deploy with `fly deploy`");
            Ok(())
        }
    }
}

/// What is about to be made, after the user has looked at it: flyctl opens a browser for changes, we
/// ask. Without a terminal nobody is asked.
async fn tweaked(context: &Context<'_>, plan: Plan) -> Outcome<Plan> {
    let question = "Do you want to tweak these settings before proceeding?";
    if !context.console.is_interactive() || !prompt::confirm(context.console, question)? {
        return Ok(plan);
    }
    let name = loop {
        let name = prompt::line(context.console, "App name:", &plan.name)?;
        match refuse_taken(context, &name).await {
            Ok(()) => break name,
            Err(failure) => drop(failure.print(context.console)),
        }
    };
    let mut all = context.client.list_organizations().await?;
    all.sort_by(|a, b| (!a.personal, &a.name).cmp(&(!b.personal, &b.name)));
    let now = all.iter().position(|org| org.slug == plan.org).unwrap_or(0);
    let org = context.choose_org(all, now)?.slug;
    let region = prompted_region(context, &plan.region).await?;
    let config =
        Config { app: Some(name.clone()), primary_region: Some(region.clone()), ..plan.config };
    let plan = Plan {
        name,
        name_source: CHOSEN,
        org,
        org_source: CHOSEN,
        region,
        region_source: CHOSEN,
        config,
        ..plan
    };
    announce(context, &plan);
    Ok(plan)
}

async fn prompted_region(context: &Context<'_>, now: &str) -> Outcome<String> {
    let mut regions = context.client.list_regions().await?.regions;
    regions.retain(|region| !region.deprecated);
    regions.sort_by(|a, b| (&a.name, &a.code).cmp(&(&b.name, &b.code)));
    let options: Vec<_> =
        regions.iter().map(|region| format!("{} ({})", region.name, region.code)).collect();
    let at = regions.iter().position(|region| region.code == now).unwrap_or(0);
    let chosen = prompt::select(context.console, "Select region:", at, &options)?;
    Ok(regions.swap_remove(chosen).code)
}

/// A file that is there already, if the user wants it.
fn existing_config(context: &Context<'_>, args: &Launch) -> Outcome<Option<flytoml::Loaded>> {
    let Some(path) = flytoml::find(&context.env.dir, args.config.as_deref())? else {
        return Ok(None);
    };
    let loaded = flytoml::load(&path)?;
    let app = loaded.config.app.clone().unwrap_or_default();
    context.console.line(format!("An existing fly.toml file was found for app {app}"));
    let wanted = args.copy_config || args.yes.yes || args.config.is_some();
    if !wanted
        && !context.confirm("Would you like to use this fly.toml configuration for this app?")?
    {
        return Ok(None);
    }
    // Before anything is created.
    if loaded.cannot_run() {
        config_command::report(context, &loaded)?;
    }
    Ok(Some(loaded))
}

async fn make_plan(
    context: &Context<'_>,
    args: &Launch,
    existing: Option<flytoml::Loaded>,
) -> Outcome<Plan> {
    let default_path = context.env.dir.join(match (args.json, args.yaml) {
        (true, _) => "fly.json",
        (false, true) => "fly.yaml",
        (false, false) => "fly.toml",
    });
    let path = existing.as_ref().map_or(default_path, |loaded| loaded.path.clone());
    let mut config = existing.map(|loaded| loaded.config).unwrap_or_default();
    let (name, name_source) = choose_name(context, args, &config)?;
    refuse_taken(context, &name).await?;
    let (org, org_source) = choose_org(context, args).await?;
    let (region, region_source) = choose_region(context, args, &config).await?;
    let size_source = match (args.rollout.vm.is_given(), config.vm.is_empty()) {
        (true, _) => GIVEN,
        (false, true) => "most apps need about 1GB of RAM",
        (false, false) => OF_FILE,
    };
    config.app = Some(name.clone());
    config.primary_region = Some(region.clone());
    deploy::apply_flags(&mut config, &args.rollout)?;
    deploy::refuse_unsupported(&config)?;
    if let Some(image) = &args.rollout.image {
        let build = config.build.get_or_insert_default();
        *build = Build { image: Some(image.clone()), ..Build::default() };
    }
    Ok(Plan {
        name,
        name_source,
        org,
        org_source,
        region,
        region_source,
        size_source,
        config,
        path,
    })
}

/// `--org`, else the default one, without a question (flyctl's launch asks nobody either).
async fn choose_org(context: &Context<'_>, args: &Launch) -> Outcome<(String, &'static str)> {
    match context.given_org(args.org.org.clone()) {
        Some(slug) => Ok((context.org(Some(slug)).await?.slug, GIVEN)),
        None => {
            let slug = context.client.info().await?.default_org;
            Ok((slug, "fly launch defaults to the personal org"))
        }
    }
}

/// `--name`, else the file's, else the directory's (DE-62).
fn choose_name(
    context: &Context<'_>,
    args: &Launch,
    config: &Config,
) -> Outcome<(String, &'static str)> {
    if let Some(name) = &args.name {
        return Ok((name.clone(), GIVEN));
    }
    if args.generate_name {
        return Ok((apps::generated_name(), "generated"));
    }
    if let Some(app) = config.app.clone().filter(|app| !app.is_empty()) {
        return Ok((app, OF_FILE));
    }
    let name = clean_name(&context.env.dir.file_name().unwrap_or_default().to_string_lossy());
    match name.is_empty() {
        true => Ok((apps::generated_name(), "generated")),
        false => Ok((name, "derived from your directory name")),
    }
}

fn clean_name(text: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.chars().map(clean).take(NAME_CHARS_MAX).collect();
    name.trim_matches('-').to_owned()
}

async fn refuse_taken(context: &Context<'_>, name: &str) -> Outcome {
    match context.client.get_app(name).await {
        Ok(_) => Err(Failure::new(format!("App '{name}' already exists")).hint(format!(
            "You can deploy to it using `fly deploy -a {name}`, or launch with another name: \
                 `fly launch --name OTHER`"
        ))),
        Err(error) if error.status() == Some(404) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn choose_region(
    context: &Context<'_>,
    args: &Launch,
    config: &Config,
) -> Outcome<(String, &'static str)> {
    let given = args.region.clone().or_else(|| args.rollout.primary_region.clone());
    let asked = given.or_else(|| context.env.get(env::REGION).map(str::to_owned));
    let regions = context.client.list_regions().await?;
    let known = |code: &str| regions.regions.iter().any(|region| region.code == code);
    let codes = || regions.regions.iter().map(|r| r.code.clone()).collect::<Vec<_>>().join(", ");
    match (asked, config.primary_region.clone().filter(|code| known(code))) {
        (Some(code), _) if known(&code) => Ok((code, GIVEN)),
        (Some(code), _) => Err(Failure::new(format!("region {code} not found"))
            .hint(format!("There is {}; name one with -r", codes()))),
        (None, Some(code)) => Ok((code, OF_FILE)),
        (None, None) => Ok((regions.nearest, "this is the fastest region for you")),
    }
}

fn open_image(context: &Context<'_>, config: &Config, rollout: &Rollout) -> Outcome<OpenImage> {
    deploy::open(context, config, rollout, &context.env.dir)
}

/// Fills in what a new file has (DE-63, DE-64); what an existing one says is kept.
fn complete(
    args: &Launch,
    mut config: Config,
    image: Option<&OpenImage>,
    dir: &Path,
) -> Outcome<Config> {
    let asked = (args.internal_port != -1).then_some(args.internal_port);
    if let Some(port) = asked
        && !(1..=65535).contains(&port)
    {
        return Err(Failure::new(format!("internal port {port} is out of range"))
            .hint("Use --internal-port with 1 to 65535"));
    }
    if let Some(command) = &args.command {
        config.processes.insert("app".to_owned(), command.clone());
    }
    match &mut config.http_service {
        Some(service) => service.internal_port = asked.unwrap_or(service.internal_port),
        None if config.services.is_empty() => {
            let exposed = || image.and_then(OpenImage::exposed_port).map(i64::from);
            let port = asked.or_else(exposed).or_else(|| dockerfile_port(dir));
            let auto_stop = auto_stop(&args.auto_stop)?;
            config.http_service = Some(generated_service(port.unwrap_or(PORT_DEFAULT), auto_stop));
        }
        None => {}
    }
    if config.vm.is_empty() {
        config.vm = vec![generated_vm()];
    }
    Ok(config)
}

fn auto_stop(word: &str) -> Outcome<AutoStop> {
    match word {
        "off" | "false" => Ok(AutoStop::Off),
        "stop" | "true" => Ok(AutoStop::Stop),
        "suspend" => Ok(AutoStop::Suspend),
        _ => Err(Failure::new(format!("'{word}' is not a way to stop Machines"))
            .hint("Use --auto-stop off, stop or suspend")),
    }
}

/// flyctl's own, but for `force_https`: there is no TLS at a Flycast address (FC-22).
fn generated_service(internal_port: i64, auto_stop: AutoStop) -> Service {
    Service {
        internal_port,
        force_https: false,
        auto_stop_machines: Some(auto_stop),
        auto_start_machines: Some(true),
        min_machines_running: Some(0),
        processes: vec!["app".to_owned()],
        ..Service::default()
    }
}

fn generated_vm() -> Vm {
    Vm {
        memory: Some("1gb".to_owned()),
        cpu_kind: Some("shared".to_owned()),
        cpus: Some(1),
        memory_mb: Some(1024),
        ..Vm::default()
    }
}

/// The first port that a Dockerfile exposes.
fn dockerfile_port(dir: &Path) -> Option<i64> {
    let text = std::fs::read_to_string(dir.join("Dockerfile")).ok()?;
    text.lines().find_map(|line| {
        let (word, rest) = line.trim().split_once(char::is_whitespace)?;
        let port = rest.split_whitespace().next()?;
        let port = port.strip_suffix("/tcp").unwrap_or(port);
        word.eq_ignore_ascii_case("EXPOSE").then(|| port.parse().ok()).flatten()
    })
}

fn announce(context: &Context<'_>, plan: &Plan) {
    let console = context.console;
    console.line(format!("Creating app in {}\n", context.env.dir.display()));
    console.line("We're about to launch your app. Here's what you're getting:\n");
    let rows = [
        ("Organization", plan.org.clone(), plan.org_source),
        ("Name", plan.name.clone(), plan.name_source),
        ("Region", plan.region.clone(), plan.region_source),
        ("App Machines", size_text(&plan.config), plan.size_source),
    ];
    let widest = rows.iter().map(|(_, value, _)| value.len()).max().unwrap_or(0);
    for (label, value, source) in rows {
        let label = format!("{label}:");
        console.line(format!("{label:<13} {value:<widest$} ({source})"));
    }
    console.line("");
}

/// `shared-cpu-1x, 1GB RAM`, of the Machines of the first group.
fn size_text(config: &Config) -> String {
    let group = config.groups().into_iter().next().unwrap_or_default();
    let machine = config.machine_config(&group).unwrap_or_default();
    let guest = machine.get("guest").cloned().unwrap_or_default();
    let number = |key: &str, default| guest[key].as_u64().unwrap_or(default);
    let (cpus, megabytes) = (number("cpus", 1), number("memory_mb", 256));
    let size = match guest["cpu_kind"].as_str().unwrap_or("shared") {
        "shared" => format!("shared-cpu-{cpus}x"),
        kind => format!("{kind}-{cpus}x"),
    };
    let more = match config.vm.len() {
        0 | 1 => String::new(),
        count => format!(", {} more", count - 1),
    };
    match megabytes / 1024 {
        0 => format!("{size}, {megabytes}MB RAM{more}"),
        gigabytes => format!("{size}, {gigabytes}GB RAM{more}"),
    }
}

async fn create_app(context: &Context<'_>, args: &Launch, plan: &Plan) -> Outcome<App> {
    let address_intent = match (args.rollout.flycast, args.rollout.no_public_ips) {
        (true, _) => AddressIntent::Private,
        (false, true) => AddressIntent::None,
        (false, false) => AddressIntent::Public,
    };
    let input = CreateApp {
        name: plan.name.clone(),
        org_slug: plan.org.clone(),
        network: String::new(),
        address_intent,
    };
    let app = apps::create(context, &input).await?;
    context.console.line(format!("Created app '{}' in organization '{}'", app.name, plan.org));
    if !app.hostname.is_empty() {
        context.console.line(format!("Hostname: {}", app.hostname));
    }
    Ok(app)
}

async fn push_or_undo(
    context: &Context<'_>,
    app: &App,
    image: OpenImage,
) -> Outcome<Option<ImageInfo>> {
    let brought = context.interrupt.cut(deploy::bring(context, &app.name, image)).await;
    if brought.is_err() {
        undo(context, &app.name).await;
    }
    brought.map(Some)
}

/// Removes an app that was made a moment ago and has no Machine: nobody wants it. Answers whether it is
/// gone; one that cannot be looked at or removed stays, and that is said.
async fn undo(context: &Context<'_>, app: &str) -> bool {
    let machines = context.client.list_machines(app, &MachineFilter::default()).await;
    if !machines.is_ok_and(|machines| machines.is_empty()) {
        return false;
    }
    match context.client.delete_app(app).await {
        Ok(()) => {
            context.console.note(format!("Removed the app {app} again: none of it was running"));
            true
        }
        Err(error) => {
            context.console.note(format!("could not remove the app {app} again: {error}"));
            false
        }
    }
}

/// Writes a new file, or changes name and region in an existing one and leaves the rest as it was typed.
fn write_config(context: &Context<'_>, plan: &Plan) -> Outcome {
    let existing = std::fs::read_to_string(&plan.path).ok();
    let edited = existing.as_deref().and_then(|text| edit(text, plan));
    let text = match edited {
        Some(text) => text,
        None => config_command::written(&plan.config, &plan.path)?,
    };
    std::fs::write(&plan.path, text).map_err(|error| {
        Failure::from(error).context(format!("could not write {}", plan.path.display()))
    })?;
    let name = plan.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    context.console.line(format!("Wrote config file {name}"));
    Ok(())
}

/// The existing text with the new name and region; `None` when that would not say what the plan says.
fn edit(text: &str, plan: &Plan) -> Option<String> {
    let mut document: toml_edit::DocumentMut = text.parse().ok()?;
    document["app"] = toml_edit::value(plan.name.as_str());
    document["primary_region"] = toml_edit::value(plan.region.as_str());
    let text = document.to_string();
    let read = flytoml::parse(&plan.path, &text).ok()?;
    let same = |config: &Config| Config { build: None, vm: Vec::new(), ..config.clone() };
    (same(&read.config) == same(&plan.config) && read.config.build == plan.config.build)
        .then_some(text)
}

async fn first_deploy(
    context: &Context<'_>,
    args: &Launch,
    app: App,
    config: Config,
    image: ImageInfo,
) -> Outcome {
    let options = Options::resolve(context, &config, &args.rollout, Scope::Everything)?;
    deploy::deploy(context, Job { app, config, image, options, work: deploy::Work::Deploy }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directorys_name_becomes_an_apps_name() {
        assert_eq!(clean_name("My App_2"), "my-app-2");
        assert_eq!(clean_name("..."), "");
        assert_eq!(clean_name(&"x".repeat(99)).len(), NAME_CHARS_MAX);
    }

    #[test]
    fn a_generated_service_never_forces_https() {
        let service = generated_service(80, AutoStop::Stop);
        let config = Config { http_service: Some(service), ..Config::default() };
        assert!(flytoml::to_toml(&config).contains("  force_https = false\n"));
    }
}
