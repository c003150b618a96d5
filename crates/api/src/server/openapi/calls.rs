//! The list of calls. A new call gets its entry here; the tests say when it is missing.

use std::collections::BTreeMap;

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::call::Call;
use super::parameter::{Parameter, flag, number, pattern, seconds, text, texts, words};
use super::shapes::Shapes;
use crate::wire::{
    App, AppPage, AppPatch, AppWhy, AssignIp, Busy, BusyInput, CreateApp, CreateRelease,
    CreateToken, CreateVolume, DnsAnswer, Done, Event, ExecAnswer, ExecInput, ExtendVolume,
    ExtendedVolume, ImageInfo, Info, IpAssignment, IpPage, LaunchInput, Lease, LeaseInput,
    LedgerPage, LogPage, Machine, MachineState, MetadataValue, NewToken, OrganizationAnswer,
    OrganizationPage, Process, RegionPage, Release, ReleaseAnswer, ReleasePage, RotateKeys, Secret,
    SecretAnswer, SecretPage, SecretsAnswer, SecretsVersion, SetSecret, Signal, SignalInput,
    Snapshot, SourceKeys, StartAnswer, StopInput, TokenPage, UpdateRelease, UpdateSecrets,
    UpdateVolume, Volume, WaitState, Whoami,
};

const OCTETS: &str = "application/octet-stream";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

const DIGEST_OR_EMPTY: &str = "^(sha256:[0-9a-f]{64})?$";
const REFERENCE: &str =
    "^[a-z0-9]+([._/-][a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$";

/// All calls.
pub(super) fn calls() -> Vec<Call> {
    [
        apps(),
        inside_apps(),
        addresses(),
        machines(),
        commands(),
        leases(),
        metadata(),
        busy(),
        facts(),
        why(),
        releases(),
    ]
    .into_iter()
    .chain([tokens(), secrets(), volumes(), uploads(), manifests()])
    .flatten()
    .collect()
}

fn apps() -> Vec<Call> {
    const ONE: &str = "/v1/apps/{app}";
    vec![
        Call::new("GET", "/v1/apps", "Lists apps by name.")
            .query("org_slug", text(), "Only apps of this organization.")
            .query("app_role", text(), "Only apps with this role; apps here have none.")
            .gives::<AppPage>(200),
        Call::new("POST", "/v1/apps", "Makes an app, and its network if that is new.")
            .takes::<CreateApp>()
            .gives::<App>(201)
            .refuses(&[404]),
        Call::new("GET", ONE, "Reads an app.").gives::<App>(200),
        Call::new("PATCH", ONE, "Changes an app.").takes::<AppPatch>().gives::<App>(200),
        Call::new("DELETE", ONE, "Removes an app with its addresses, Machines and releases.")
            .query("force", flag(), "Fly's; removal never asks whether Machines run.")
            .query("volume", texts(), "A volume that goes, too; all others stay. Extension.")
            .gives::<Done>(202),
    ]
}

fn inside_apps() -> Vec<Call> {
    let stream = "Makes the connection a stream into the app's network, waking what sleeps.";
    let upgrade = Parameter::header("Upgrade", words(&["tcp"]), "What the connection becomes.");
    let host = Parameter::query("host", pattern("^[a-z0-9.-]{1,253}$"), "A name or address.");
    let port = json!({"type": "integer", "minimum": 1, "maximum": 65535});
    let logs = "Reads log lines; holds an answer that would be empty.";
    let hold = "How long to hold it, at most 60000; not given = 10000. Extension.";
    vec![
        Call::new("POST", "/v1/apps/{app}/proxy", stream)
            .with(upgrade.required())
            .with(host.required())
            .with(Parameter::query("port", port, "A port.").required())
            .gives_nothing(101)
            .refuses(&[426, 502]),
        Call::new("GET", "/v1/apps/{app}/images", "Resolves an image reference.")
            .with(Parameter::query("ref", pattern(REFERENCE), "The reference.").required())
            .gives::<ImageInfo>(200)
            .refuses(&[422]),
        Call::new("GET", "/api/v1/apps/{app}/logs", logs)
            .query("next_token", text(), "Where the former page ended; empty = the oldest line.")
            .query("instance", text(), "Only this Machine.")
            .query("region", text(), "Only this region.")
            .query("hold_ms", number(), hold)
            .gives::<LogPage>(200),
    ]
}

fn addresses() -> Vec<Call> {
    const ALL: &str = "/v1/apps/{app}/ip_assignments";
    vec![
        Call::new(
            "GET",
            ALL,
            "Lists an app's addresses in order of allocation, the shared one last.",
        )
        .gives::<IpPage>(200),
        Call::new(
            "POST",
            ALL,
            "Gives an app an address; one that it has already is answered again.",
        )
        .takes::<AssignIp>()
        .gives::<IpAssignment>(200),
        Call::new("DELETE", "/v1/apps/{app}/ip_assignments/{ip}", "Takes an address back.")
            .gives::<Done>(200),
    ]
}

fn machines() -> Vec<Call> {
    const ALL: &str = "/v1/apps/{app}/machines";
    const ONE: &str = "/v1/apps/{app}/machines/{id}";
    vec![
        Call::new("GET", ALL, "Lists an app's Machines.")
            .query("include_deleted", flag(), "Also those that are going.")
            .query("region", text(), "Only this region.")
            .query("state", inline_or_empty::<MachineState>(), "Only this state.")
            .gives::<Vec<Machine>>(200),
        Call::new("POST", ALL, "Makes a Machine and, unless told otherwise, begins to start it.")
            .takes::<LaunchInput>()
            .gives::<Machine>(200),
        Call::new("GET", ONE, "Reads a Machine.").gives::<Machine>(200),
        Call::new("POST", ONE, "Replaces a Machine's config.")
            .under_lease()
            .takes::<LaunchInput>()
            .gives::<Machine>(200)
            .refuses(&[412]),
        Call::new("DELETE", ONE, "Removes a Machine; a running one only by force.")
            .under_lease()
            .query("kill", flag(), "By force.")
            .query("force", flag(), "The same.")
            .gives::<Done>(200)
            .refuses(&[412]),
        Call::new(
            "GET",
            "/v1/apps/{app}/machines/{id}/events",
            "Lists a Machine's events, newest first.",
        )
        .gives::<Vec<Event>>(200),
        Call::new(
            "GET",
            "/v1/apps/{app}/machines/{id}/ps",
            "Lists the processes in a started Machine.",
        )
        .gives::<Vec<Process>>(200)
        .refuses(&[412]),
        Call::new(
            "POST",
            "/v1/apps/{app}/machines/{id}/exec",
            "Runs a program in a started Machine to its end, also a failing one.",
        )
        .takes::<ExecInput>()
        .gives::<ExecAnswer>(200)
        .refuses(&[408, 412, 422]),
        console(),
    ]
}

fn console() -> Call {
    let about = "Makes the connection the frames of a console in a started Machine.";
    let upgrade = Parameter::header("Upgrade", words(&["tcp"]), "What the connection becomes.");
    let side = || {
        let number = json!({"type": "integer", "minimum": 0, "maximum": 65535});
        json!({"anyOf": [number, {"type": "string", "enum": [""]}]})
    };
    Call::new("POST", "/perch/v1/apps/{app}/machines/{id}/console", about)
        .with(upgrade.required())
        .query("cmd", text(), "Program and arguments; empty = the user's shell.")
        .query("user", text(), "User; empty = the image's.")
        .query("tty", flag(), "A terminal instead of pipes.")
        .query("rows", side(), "The terminal's lines; not given = 24.")
        .query("columns", side(), "Characters in a line; not given = 80.")
        .query("term", text(), "The terminal's kind.")
        .gives_nothing(101)
        .refuses(&[412, 422, 426])
}

fn commands() -> Vec<Call> {
    let restart = "Begins to restart a Machine; one that is down is started.";
    let wait = "Waits until one of the states is reached; a `timeout` of more than 60 s is 60 s.";
    let states = json!({"type": "array", "items": inline_or_empty::<WaitState>()});
    vec![
        Call::new("POST", "/v1/apps/{app}/machines/{id}/start", "Begins to start a Machine.")
            .under_lease()
            .gives::<StartAnswer>(200)
            .refuses(&[412]),
        Call::new("POST", "/v1/apps/{app}/machines/{id}/suspend", "Begins to suspend a Machine.")
            .under_lease()
            .gives::<Done>(200)
            .refuses(&[412]),
        Call::new("POST", "/v1/apps/{app}/machines/{id}/stop", "Begins to stop a Machine.")
            .under_lease()
            .may_take::<StopInput>()
            .gives::<Done>(200)
            .refuses(&[412]),
        Call::new("POST", "/v1/apps/{app}/machines/{id}/restart", restart)
            .under_lease()
            .query("force_stop", flag(), "Kill it at once.")
            .query("signal", inline_or_empty::<Signal>(), "Instead of the signal of its config.")
            .query("timeout", seconds(), "From that signal to the kill.")
            .gives::<Done>(200)
            .refuses(&[412]),
        Call::new(
            "POST",
            "/v1/apps/{app}/machines/{id}/signal",
            "Sends a signal to a Machine's program.",
        )
        .under_lease()
        .takes::<SignalInput>()
        .gives::<Done>(200)
        .refuses(&[412]),
        Call::new("POST", "/v1/apps/{app}/machines/{id}/cordon", "Sends a Machine nothing new.")
            .under_lease()
            .gives::<Done>(200)
            .refuses(&[412]),
        Call::new("POST", "/v1/apps/{app}/machines/{id}/uncordon", "Undoes a cordon.")
            .under_lease()
            .gives::<Done>(200)
            .refuses(&[412]),
        Call::new("GET", "/v1/apps/{app}/machines/{id}/wait", wait)
            .query("state", states, "Any of these; none = started.")
            .query("timeout", seconds(), "How long, 1 to 60 s; not given = 60 s.")
            .query("version", text(), "Only this version (`instance_id`) counts.")
            .query("from_event_id", text(), "Only what happened after this event counts.")
            .query("instance_id", text(), "Older clients' word for `version`; ignored.")
            .gives::<Done>(200)
            .refuses(&[408]),
    ]
}

fn leases() -> Vec<Call> {
    const LEASE: &str = "/v1/apps/{app}/machines/{id}/lease";
    vec![
        Call::new("GET", LEASE, "Reads a Machine's lease, without its nonce.").gives::<Lease>(200),
        Call::new(
            "POST",
            LEASE,
            "Takes a lease, or extends it with its nonce; 409 at once when somebody else has it, 404 when the one to \
             extend has ended.",
        )
        .under_lease()
        .query(
            "ttl",
            seconds(),
            "How long, cut to 3600 s; not given = what the body says, else 120 s.",
        )
        .may_take::<LeaseInput>()
        .gives::<Lease>(201),
        Call::new("DELETE", LEASE, "Gives a lease back.")
            .under_lease()
            .query("force", flag(), "End it whoever holds it, without its nonce.")
            .gives::<Done>(200),
    ]
}

fn metadata() -> Vec<Call> {
    const KEY: &str = "/v1/apps/{app}/machines/{id}/metadata/{key}";
    vec![
        Call::new("GET", "/v1/apps/{app}/machines/{id}/metadata", "Reads a Machine's metadata.")
            .gives::<BTreeMap<String, String>>(200),
        Call::new("POST", KEY, "Sets one entry; no restart, no new version.")
            .under_lease()
            .takes::<MetadataValue>()
            .gives::<Done>(200),
        Call::new("DELETE", KEY, "Removes one entry.").under_lease().gives::<Done>(200),
    ]
}

fn busy() -> Vec<Call> {
    const BUSY: &str = "/v1/apps/{app}/machines/{id}/busy";
    let says = "Keeps a started Machine awake because it is at work that no connection shows.";
    vec![
        Call::new("PUT", BUSY, says).takes::<BusyInput>().gives::<Busy>(200).refuses(&[412]),
        Call::new("DELETE", BUSY, "Ends that before its time.").gives::<Done>(200),
    ]
}

fn secrets() -> Vec<Call> {
    const ALL: &str = "/v1/apps/{app}/secrets";
    const ONE: &str = "/v1/apps/{app}/secrets/{name}";
    let least = "The version that is wanted at least; 422 before it is there.";
    let shown = "Must be false: values are not shown to anybody.";
    vec![
        Call::new("GET", ALL, "Lists an app's secrets by name, without their values.")
            .query("version", number(), least)
            .query("show_secrets", flag(), shown)
            .gives::<SecretPage>(200)
            .refuses(&[403, 422]),
        Call::new("POST", ALL, "Sets and unsets secrets, all or none.")
            .takes::<UpdateSecrets>()
            .gives::<SecretsAnswer>(200),
        Call::new("GET", ONE, "Reads a secret, without its value.")
            .query("version", number(), least)
            .query("show_secrets", flag(), shown)
            .gives::<Secret>(200)
            .refuses(&[403, 422]),
        Call::new("POST", ONE, "Sets a secret.").takes::<SetSecret>().gives::<SecretAnswer>(200),
        Call::new("DELETE", ONE, "Unsets a secret.").gives::<SecretsVersion>(200).refuses(&[422]),
    ]
}

fn volumes() -> Vec<Call> {
    const ALL: &str = "/v1/apps/{app}/volumes";
    const ONE: &str = "/v1/apps/{app}/volumes/{volume}";
    const SNAPSHOTS: &str = "/v1/apps/{app}/volumes/{volume}/snapshots";
    let extend = "Makes a volume longer, at once or before its Machine's next start.";
    vec![
        Call::new("GET", ALL, "Lists an app's volumes by id.").gives::<Vec<Volume>>(200),
        Call::new("POST", ALL, "Makes a volume: empty, or as a copy.")
            .takes::<CreateVolume>()
            .gives::<Volume>(200)
            .refuses(&[412]),
        Call::new("GET", ONE, "Reads a volume.").gives::<Volume>(200),
        Call::new("PUT", ONE, "Changes what is done with a volume's snapshots.")
            .takes::<UpdateVolume>()
            .gives::<Volume>(200),
        Call::new("DELETE", ONE, "Removes a volume with its data, once no Machine has it.")
            .gives::<Volume>(200)
            .refuses(&[412]),
        Call::new("PUT", "/v1/apps/{app}/volumes/{volume}/extend", extend)
            .takes::<ExtendVolume>()
            .gives::<ExtendedVolume>(200),
        Call::new("GET", SNAPSHOTS, "Lists a volume's snapshots, oldest first.")
            .gives::<Vec<Snapshot>>(200),
        Call::new("POST", SNAPSHOTS, "Copies a volume as of one moment.")
            .gives::<Snapshot>(200)
            .refuses(&[412]),
    ]
}

fn facts() -> Vec<Call> {
    vec![
        Call::new("GET", "/v1/openapi.json", "This description.")
            .gives::<serde_json::Map<String, Value>>(200),
        Call::new("GET", "/v1/platform/regions", "Lists regions.").gives::<RegionPage>(200),
        Call::new("GET", "/api/v1/organizations", "Lists organizations by slug.")
            .gives::<OrganizationPage>(200),
        Call::new("GET", "/api/v1/organizations/{org}", "Reads an organization.")
            .gives::<OrganizationAnswer>(200),
        Call::new("GET", "/perch/v1/info", "Tells facts about this server.").gives::<Info>(200),
        Call::new("GET", "/perch/v1/whoami", "Tells who the caller is.").gives::<Whoami>(200),
        dns("/perch/v1/apps/{app}/dns", "Asks the DNS server as an app does."),
        dns("/perch/v1/organizations/{org}/dns", "Asks it as the default network does."),
    ]
}

fn why() -> Vec<Call> {
    let held = "Milliseconds to wait for a record where there is none behind `after`; at most 60000; not given = 0.";
    vec![
        Call::new("GET", "/perch/v1/why/events", "Reads the ledger, oldest first.")
            .query("app", text(), "Only of this app.")
            .query("after", number(), "Only behind this id; not given = the newest records.")
            .query("limit", number(), "How many, at most 1000; not given = 100.")
            .query("hold_ms", number(), held)
            .gives::<LedgerPage>(200)
            .refuses(&[404]),
        Call::new("GET", "/metrics", "Tells numbers as Prometheus reads them.")
            .query("app", text(), "Only of this app, where they are told by app.")
            .gives_as(200, Some(("text/plain", plain)))
            .refuses(&[404]),
        Call::new(
            "GET",
            "/perch/v1/apps/{app}/why",
            "Tells why Machines are awake or asleep just now.",
        )
        .query("callers", number(), "How many callers to list, at most 100; not given = 20.")
        .gives::<AppWhy>(200),
    ]
}

fn plain(_shapes: &mut Shapes) -> Value {
    json!({"type": "string"})
}

fn dns(path: &'static str, about: &'static str) -> Call {
    let name = json!({
        "type": "string",
        "maxLength": 253,
        "pattern": "^([A-Za-z0-9_][A-Za-z0-9_-]{0,62}[.])*[A-Za-z0-9_][A-Za-z0-9_-]{0,62}[.]?$",
    });
    // As the query reads it: in either case, and empty counts as absent.
    let kinds = pattern("^([Aa]|[Aa]{4}|[Cc][Nn][Aa][Mm][Ee]|[Tt][Xx][Tt])?$");
    Call::new("GET", path, about)
        .with(Parameter::query("name", name, "The name that is looked up.").required())
        .query("type", kinds, "What is asked about it; not given = AAAA.")
        .gives::<DnsAnswer>(200)
        .refuses(&[422])
}

fn releases() -> Vec<Call> {
    vec![
        Call::new(
            "POST",
            "/api/v1/releases",
            "Begins a release, unless another one of the app is in progress.",
        )
        .takes::<CreateRelease>()
        .gives::<ReleaseAnswer>(201)
        .refuses(&[404]),
        Call::new(
            "PATCH",
            "/api/v1/releases/{release}",
            "Moves a release on, or says that its deploy lives.",
        )
        .takes::<UpdateRelease>()
        .gives::<Release>(200),
        Call::new("GET", "/api/v1/apps/{app}/releases", "Lists releases, newest first.")
            .query("limit", number(), "How many, at most 1000; not given = 25.")
            .gives::<ReleasePage>(200),
        Call::new(
            "GET",
            "/api/v1/apps/{app}/releases/current",
            "Reads the newest release, with its definition.",
        )
        .gives::<Release>(200),
    ]
}

/// For processes of the host only, on the Unix socket.
fn tokens() -> Vec<Call> {
    vec![
        Call::new("GET", "/perch/v1/keys", "Lists the keys that sign Fly-Src.")
            .gives::<SourceKeys>(200),
        Call::new("POST", "/perch/v1/keys", "Makes another key; the old one goes a day later.")
            .takes::<RotateKeys>()
            .gives::<SourceKeys>(200)
            .refuses(&[409]),
        Call::new("GET", "/perch/v1/tokens", "Lists tokens by name.").gives::<TokenPage>(200),
        Call::new("POST", "/perch/v1/tokens", "Makes a token; its secret is told this once.")
            .takes::<CreateToken>()
            .gives::<NewToken>(201)
            .refuses(&[404]),
        Call::new("DELETE", "/perch/v1/tokens/{token}", "Ends a token, by its id or its name.")
            .gives::<Done>(200),
    ]
}

fn uploads() -> Vec<Call> {
    const ALL: &str = "/v2/{app}/blobs/uploads/";
    const ONE: &str = "/v2/{app}/blobs/uploads/{upload}";
    let piece = || {
        let range = "Where the piece begins and ends; without it, it follows the last one.";
        Parameter::header("Content-Range", pattern("^[0-9]{1,15}-[0-9]{1,15}$"), range)
    };
    let received = |call: Call, code: u16| {
        call.gives_nothing(code)
            .header("Location", "The upload.")
            .header("Range", "What was received, as `0-LAST`.")
            .header("Docker-Upload-UUID", "Its id.")
    };
    let kept = |call: Call| {
        call.gives_nothing(201)
            .header("Location", "The blob.")
            .header("Docker-Content-Digest", "Its digest.")
    };
    let begin = Call::new(
        "POST",
        ALL,
        "Begins the upload of a blob, takes it whole, or finds that it is here.",
    )
    .query("digest", pattern(DIGEST_OR_EMPTY), "Digest of a blob that is the whole body.")
    .query("mount", pattern(DIGEST_OR_EMPTY), "Digest of a blob that may be here already.")
    .query("from", text(), "Repository of that one; ignored.")
    .takes_as(OCTETS, bytes, false);
    let go_on =
        Call::new("PATCH", ONE, "Takes a piece.").with(piece()).takes_as(OCTETS, bytes, false);
    let finish = Call::new("PUT", ONE, "Takes the last piece, if any, and checks the whole.")
        .with(
            Parameter::query("digest", pattern("^sha256:[0-9a-f]{64}$"), "Digest of the blob.")
                .required(),
        )
        .with(piece())
        .takes_as(OCTETS, bytes, false);
    vec![
        Call::new("GET", "/v2/", "Says that this is a registry.")
            .gives::<serde_json::Map<String, Value>>(200)
            .header("Docker-Distribution-Api-Version", "registry/2.0"),
        kept(received(begin, 202)),
        received(Call::new("GET", ONE, "Tells how far an upload is."), 204),
        received(go_on.refuses(&[416]), 202),
        kept(finish.refuses(&[416])),
        Call::new("DELETE", ONE, "Drops an upload.").gives_nothing(204),
        Call::new("HEAD", "/v2/{app}/blobs/{digest}", "Says whether a blob is here.")
            .gives_nothing(200)
            .header("Docker-Content-Digest", "Its digest."),
    ]
}

fn manifests() -> Vec<Call> {
    const ONE: &str = "/v2/{app}/manifests/{reference}";
    let digest = "Its digest.";
    vec![
        Call::new("GET", ONE, "Reads a manifest as it was pushed.")
            .gives_as(200, Some((MANIFEST, anything)))
            .header("Docker-Content-Digest", digest),
        Call::new("HEAD", ONE, "Says whether a manifest is here.")
            .gives_nothing(200)
            .header("Docker-Content-Digest", digest),
        Call::new("PUT", ONE, "Keeps a manifest; 404 when a blob that it names is missing.")
            .takes_as(MANIFEST, manifest, true)
            .gives_nothing(201)
            .header("Location", "The manifest.")
            .header("Docker-Content-Digest", digest),
    ]
}

fn bytes(_: &mut Shapes) -> Value {
    json!({"type": "string", "format": "binary"})
}

fn manifest(_: &mut Shapes) -> Value {
    let descriptor = json!({
        "type": "object",
        "required": ["mediaType", "digest", "size"],
        "properties": {
            "mediaType": {"type": "string"},
            "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
            "size": {"type": "integer", "minimum": 0, "maximum": i64::MAX},
        },
    });
    json!({
        "type": "object",
        "required": ["schemaVersion", "config", "layers"],
        "properties": {
            "schemaVersion": {"const": 2},
            "config": descriptor,
            "layers": {"type": "array", "items": descriptor},
        },
    })
}

fn anything(_: &mut Shapes) -> Value {
    json!({"type": "object"})
}

/// A type's schema for a query, where empty counts as absent.
fn inline_or_empty<T: JsonSchema>() -> Value {
    let schema = T::json_schema(&mut SchemaGenerator::default());
    json!({"anyOf": [schema, {"enum": [""], "type": "string"}]})
}
