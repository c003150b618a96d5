//! The wire as flyctl reads it: status codes, error bodies, headers, shapes, against the real server on its socket.
//!
//! Sections are those of flyctl's contract as it was read from its source; calls that Perch does not have (GraphQL,
//! builds) are in COMPAT, and volumes, exec and console have modules of their own. What holds over random sequences is
//! in `tests/model`, every status of every call against the description in `wire`.
//!
//! | Section | What | Test |
//! |---|---|---|
//! | 2.2 | `fly-request-id`, `content-type` | `every_refusal_has_a_body_that_flyctl_can_print` |
//! | 2.4 | error bodies, 400 401 404 405 412 422 501, words that flyctl matches | the same; texts of leases and waits below |
//! | 2.1 | opaque tokens, `Bearer` | `token::…` |
//! | 3 | App, Machine, Service, Event, Lease, Secret, Release, Organization | with their calls |
//! | 4.1 | apps: `?wait=true`, empty strings, `name_taken`, `org_slug`, status, 404 | `an_app_is_made_read_listed_and_removed_as_flyctl_does` |
//! | 4.2 | `ips`, kinds, 422 for what cannot be had | `addresses_are_listed_given_and_refused_with_a_text` |
//! | 4.3, 15.25 | config as it was sent: unknown keys, null, absent; `guest` filled in | `a_config_comes_back_as_it_was_sent` |
//! | 4.3, 15.4, 15.15 | `host_status`, new `instance_id`, `skip_launch`, arrays never null | `a_config_comes_back_as_it_was_sent` |
//! | 4.3 | start's answer, stop, signal, delete without `kill`, ps | `a_life_is_told_by_states_events_and_refusals` |
//! | 3, 15.5, 15.13 | events newest first, milliseconds, `start` after `launch`, `exit_event` | the same |
//! | 4.4, 15.7 | wait: blocks, several states, `settled`, version, 408, 400, 404, `destroyed` | `a_wait_blocks_until_it_is_true_or_408` |
//! | 4.5, 15.6 | leases: nonce, refresh, 409 at once, tolerated nonce, end, version, create with `lease_ttl` | `a_lease_keeps_others_out_and_ends_by_itself` |
//! | 4.6 | secrets: null deletes, version, `min_secrets_version`, `?version=`, no values | `secrets_have_versions_that_machines_can_insist_on` |
//! | 4.7 | `Regions`, `Nearest` | `facts_have_flyctls_shapes` |
//! | 5 | organizations, releases: 201, PATCH, `?limit=`, current or 404 | `facts_have_flyctls_shapes`, `releases_are_made_moved_on_and_paged` |
//! | 7 | logs: `next_token` advances, an empty page keeps it, `instance`, `region`, the hold | `logs_are_paged_by_a_token_that_advances` |
//! | 8.1 | one deploy at a time, the order of a deploy | `one_deploy::…`, `deploy::…` |
//! | 15.8 | destroyed Machines stay readable: not here, there are no release commands; 404 at once | `a_life_is_told_by_states_events_and_refusals` |

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Response, wait_until};
use serde_json::{Value, json};

use crate::stage::{AWAKE, SOON, on_host, private_app, shell_image};

/// An answer with its JSON; null when there is none.
struct Answer {
    what: String,
    raw: Response,
    value: Value,
}

impl Answer {
    /// Fails unless it has this status; gives the JSON.
    fn has(self, status: u16) -> Result<Value> {
        ensure!(self.raw.status == status, "{}: not {status}: {:?}", self.what, self.raw);
        Ok(self.value)
    }

    /// Fails unless it is this refusal, in the form that flyctl prints.
    fn refuses(self, status: u16, part: &str) -> Result<Value> {
        let (what, raw) = (self.what.clone(), self.raw.clone());
        let value = self.has(status)?;
        let text = value["error"].as_str().with_context(|| format!("{what}: no error: {raw:?}"))?;
        ensure!(text.contains(part), "{what}: {text:?} lacks {part:?}");
        Ok(value)
    }
}

fn call(host: &Host, method: &str, path: &str, nonce: &str, body: &Value) -> Result<Answer> {
    let json = [("content-type", "application/json")];
    let lease = [("fly-machine-lease-nonce", nonce)];
    let lease = if nonce.is_empty() { &[][..] } else { &lease[..] };
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let headers = if body.is_null() { lease.to_vec() } else { [&json[..], lease].concat() };
    let raw = host.request_with(method, path, &headers, text.as_bytes())?;
    let value = serde_json::from_str(&raw.body).unwrap_or_default();
    Ok(Answer { what: format!("{method} {path} {text}"), raw, value })
}

fn get(host: &Host, path: &str) -> Result<Answer> {
    call(host, "GET", path, "", &Value::Null)
}

fn post(host: &Host, path: &str, body: &Value) -> Result<Answer> {
    call(host, "POST", path, "", body)
}

fn delete(host: &Host, path: &str) -> Result<Answer> {
    call(host, "DELETE", path, "", &Value::Null)
}

/// An app with an image and no Machine; the image as a config names it.
fn app_with_image(host: &Host) -> Result<String> {
    private_app(host, "web", AWAKE)?;
    host.wait_all("web", "started", SOON)?;
    let machines = get(host, "/v1/apps/web/machines")?.has(200)?;
    let machines = machines.as_array().context("no list")?;
    let image = machines[0]["config"]["image"].as_str().context("no image")?.to_owned();
    for machine in machines {
        let id = machine["id"].as_str().context("no id")?;
        delete(host, &format!("/v1/apps/web/machines/{id}?kill=true"))?.has(200)?;
    }
    Ok(image)
}

/// Makes a Machine; its path.
fn machine(host: &Host, input: &Value) -> Result<String> {
    let made = post(host, "/v1/apps/web/machines", input)?.has(200)?;
    Ok(format!("/v1/apps/web/machines/{}", made["id"].as_str().context("no id")?))
}

fn wait(host: &Host, machine: &str, query: &str) -> Result<Answer> {
    get(host, &format!("{machine}/wait?{query}"))
}

#[test]
fn every_refusal_has_a_body_that_flyctl_can_print() {
    on_host(|host| {
        let refused = get(host, "/v1/apps/nobody")?;
        let id = refused.raw.header("fly-request-id").context("no fly-request-id")?;
        ensure!(!id.is_empty(), "an empty request id");
        let kind = refused.raw.header("content-type").unwrap_or_default().to_owned();
        ensure!(kind.starts_with("application/json"), "{kind}");
        refused.refuses(404, "Could not find App \"nobody\"")?;
        get(host, "/v1/nothing")?.refuses(404, "/v1/nothing")?;
        get(host, "/v1/apps/web/secretkeys")?.refuses(501, "")?;
        let wrong = call(host, "PUT", "/v1/apps", "", &Value::Null)?;
        let allowed = wrong.raw.header("allow").unwrap_or_default().to_owned();
        ensure!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
        wrong.refuses(405, "")?;
        let json = [("content-type", "application/json")];
        let broken = host.request_with("POST", "/v1/apps", &json, b"{\"app_name\":")?;
        ensure!(broken.status == 400 && broken.body.contains("\"error\""), "{broken:?}");
        post(host, "/v1/apps", &json!({"name": "A_B"}))?.refuses(422, "A_B")?;
        get(host, "/v1/apps/web/machines")?.refuses(404, "Could not find App")?;
        post(host, "/v1/apps", &json!({"name": "web"}))?.has(201)?;
        let none = "/v1/apps/web/machines/00000000000000";
        get(host, none)?.refuses(404, "machine not found")?;
        post(host, &format!("{none}/start"), &Value::Null)?.refuses(404, "machine not found")?;
        post(host, &format!("{none}/lease"), &Value::Null)?.refuses(404, "machine not found")?;
        Ok(())
    });
}

#[test]
fn an_app_is_made_read_listed_and_removed_as_flyctl_does() {
    on_host(|host| {
        let input = json!({"name": "web", "org_slug": "", "network": "", "app_role_id": ""});
        let made = post(host, "/v1/apps?wait=true", &input)?.has(201)?;
        ensure!(made["name"] == "web" && made["status"] == "pending", "{made}");
        ensure!(made["network"] == "default" && made["app_role"] == "", "{made}");
        let number = |value: &Value| value["internal_numeric_id"].as_i64().is_some();
        ensure!(number(&made) && number(&made["organization"]), "{made}");
        ensure!(made["organization"]["slug"] == "personal", "{made}");
        ensure!(made["id"].as_str().is_some_and(|id| !id.is_empty()), "{made}");
        let taken = post(host, "/v1/apps", &input)?.refuses(422, "Name has already been taken")?;
        ensure!(taken["status"] == "name_taken", "{taken}");
        let nobodys = json!({"name": "x", "org_slug": "nobody"});
        post(host, "/v1/apps", &nobodys)?.refuses(404, "nobody")?;
        let listed = get(host, "/v1/apps?org_slug=personal")?.has(200)?;
        ensure!(listed["apps"][0]["name"] == "web", "{listed}");
        let machines = get(host, "/v1/apps/web/machines")?.has(200)?;
        ensure!(machines == json!([]), "not an empty list: {machines}");
        delete(host, "/v1/apps/web")?.has(202)?;
        get(host, "/v1/apps/web")?.refuses(404, "Could not find App")?;
        delete(host, "/v1/apps/web")?.refuses(404, "Could not find App")?;
        let listed = get(host, "/v1/apps?org_slug=personal")?.has(200)?;
        ensure!(listed["apps"] == json!([]), "{listed}");
        // What has Machines is deployed.
        private_app(host, "run", AWAKE)?;
        let read = get(host, "/v1/apps/run")?.has(200)?;
        ensure!(read["status"] == "deployed" && read["machine_count"] == 2, "{read}");
        Ok(())
    });
}

#[test]
fn addresses_are_listed_given_and_refused_with_a_text() {
    on_host(|host| {
        const ALL: &str = "/v1/apps/web/ip_assignments";
        post(host, "/v1/apps", &json!({"name": "web"}))?.has(201)?;
        ensure!(get(host, ALL)?.has(200)?["ips"] == json!([]), "not an empty list");
        let empty = |kind: &str| json!({"type": kind, "region": "", "org_slug": "", "network": "", "service_name": ""});
        let given = post(host, ALL, &empty("private_v6"))?.has(200)?;
        let ip = given["ip"].as_str().context("no ip")?.to_owned();
        ensure!(ip.starts_with("fdaa:") && given["shared"] == false, "{given}");
        ensure!(given["created_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{given}");
        let again = post(host, ALL, &empty("private_v6"))?.has(200)?;
        ensure!(again["ip"] == ip.as_str(), "a second one: {again}");
        // 15.16: a kind that cannot be had is 422 with a text, and no 5xx.
        post(host, ALL, &empty("v4"))?.refuses(422, "--private")?;
        post(host, ALL, &empty("v7"))?.refuses(422, "v7")?;
        let listed = get(host, ALL)?.has(200)?;
        ensure!(listed["ips"].as_array().is_some_and(|ips| ips.len() == 1), "{listed}");
        delete(host, &format!("{ALL}/{ip}"))?.has(200)?;
        delete(host, &format!("{ALL}/{ip}"))?.refuses(404, &ip)?;
        ensure!(get(host, ALL)?.has(200)?["ips"] == json!([]), "it is still there");
        Ok(())
    });
}

#[test]
fn a_config_comes_back_as_it_was_sent() {
    on_host(|host| {
        let image = app_with_image(host)?;
        let config = json!({
            "image": image, "env": {"B": "2", "A": "1"}, "zeta": {"unknown": [null, 1.5, {"x": null}]},
            "restart": {"policy": "no", "gpu_bid_price": 0.25}, "schedule": null, "metadata": {"fly_platform_version": "v2"},
            "services": [{
                "protocol": "tcp", "internal_port": 8081, "autostop": "suspend", "autostart": null,
                "min_machines_running": null, "force_instance_key": null, "ports": [{"port": 80, "handlers": ["http"], "odd": 1}],
            }],
        });
        let input = json!({"config": config, "region": "", "name": "anna", "skip_launch": true, "min_secrets_version": null});
        let made = post(host, "/v1/apps/web/machines", &input)?.has(200)?;
        let path = format!("/v1/apps/web/machines/{}", made["id"].as_str().context("no id")?);
        // `guest` is dereferenced by several commands; nothing else is added, nothing is lost.
        let mut wanted = config.clone();
        wanted["guest"] = json!({"cpu_kind": "shared", "cpus": 1, "memory_mb": 256});
        let read = get(host, &path)?.has(200)?;
        for (how, answer) in [("made", &made), ("read", &read)] {
            let mut came = answer["config"].clone();
            let guest = came["guest"].clone();
            ensure!(guest["cpu_kind"] == "shared" && guest["cpus"] == 1, "{how}: {guest}");
            ensure!(guest["memory_mb"] == 256, "{how}: {guest}");
            came["guest"] = wanted["guest"].clone();
            ensure!(came == wanted, "{how}:\n{came}\nnot\n{wanted}");
            ensure!(answer["host_status"] == "ok" && answer["name"] == "anna", "{how}: {answer}");
            ensure!(answer["state"] == "created" && answer["region"] == "lcl", "{how}: {answer}");
            ensure!(answer["events"].is_array() && answer["checks"].is_array(), "{how}: {answer}");
            ensure!(
                answer["private_ip"].as_str().is_some_and(|ip| ip.starts_with("fdaa:")),
                "{answer}"
            );
            for key in ["created_at", "updated_at"] {
                let at = answer[key].as_str().unwrap_or_default();
                ensure!(at.len() == 20 && at.ends_with('Z'), "{key}: {at}");
            }
            ensure!(answer["image_ref"]["repository"].is_string(), "{how}: {answer}");
        }
        ensure!(made.get("nonce").is_none_or(Value::is_null), "a nonce without a lease: {made}");
        // 15.13: a stopped Machine that is updated with skip_launch stays so, with a new version.
        wanted["env"] = json!({"A": "changed"});
        let input = json!({"config": wanted, "skip_launch": true});
        let updated = post(host, &path, &input)?.has(200)?;
        ensure!(updated["instance_id"] != made["instance_id"], "no new version: {updated}");
        ensure!(updated["config"] == wanted, "{}\nnot\n{wanted}", updated["config"]);
        wait(host, &path, "state=settled&timeout=5")?.has(200)?;
        let state = get(host, &path)?.has(200)?["state"].clone();
        ensure!(state == "created" || state == "stopped", "it was started: {state}");
        // A region that has no host, a config without an image, a version that somebody has changed.
        let elsewhere = json!({"config": config, "region": "fra"});
        post(host, "/v1/apps/web/machines", &elsewhere)?.refuses(422, "fra")?;
        post(host, "/v1/apps/web/machines", &json!({"config": {}}))?.refuses(422, "image")?;
        let old = json!({"config": config, "current_version": made["instance_id"]});
        post(host, &path, &old)?.refuses(409, "somebody changed it")?;
        Ok(())
    });
}

#[test]
fn a_life_is_told_by_states_events_and_refusals() {
    on_host(|host| {
        let image = app_with_image(host)?;
        let config = json!({"image": image, "restart": {"policy": "no"}});
        let path = machine(host, &json!({"config": config}))?;
        wait(host, &path, "state=started&timeout=30")?.has(200)?;
        let again = post(host, &format!("{path}/start"), &Value::Null)?.has(200)?;
        ensure!(again["previous_state"] == "started" && again["status"] != "error", "{again}");
        let listed = get(host, &format!("{path}/ps"))?.has(200)?;
        ensure!(listed[0]["pid"].is_number() && listed[0]["listen_sockets"].is_array(), "{listed}");
        delete(host, &path)?.refuses(412, "stop it first")?;
        let id = path.rsplit('/').next().context("no id")?;
        let stop = json!({"id": id, "signal": "SIGKILL", "timeout": "10s"});
        post(host, &format!("{path}/stop"), &stop)?.has(200)?;
        wait(host, &path, "state=stopped&timeout=30")?.has(200)?;
        post(host, &format!("{path}/signal"), &json!({"signal": 9}))?.refuses(412, "")?;
        get(host, &format!("{path}/ps"))?.refuses(412, "")?;
        let started = post(host, &format!("{path}/start"), &Value::Null)?.has(200)?;
        ensure!(started["previous_state"] == "stopped", "{started}");
        wait(host, &path, "state=started&timeout=30")?.has(200)?;
        post(host, &format!("{path}/signal"), &json!({"signal": 9}))?.has(200)?;
        wait(host, &path, "state=stopped&timeout=30")?.has(200)?;
        let told = get(host, &path)?.has(200)?["events"].clone();
        check_events(told.as_array().context("no events")?)?;
        let suspended = post(host, &format!("{path}/suspend"), &Value::Null)?;
        suspended.refuses(412, "stopped")?;
        // A Machine that was destroyed is gone at once; flyctl takes the 404 for success.
        delete(host, &path)?.has(200)?;
        wait(host, &path, "state=destroyed&timeout=30")?.has(200)?;
        wait_until("the Machine to be gone", SOON, || {
            Ok((get(host, &path)?.raw.status == 404).then_some(()))
        })?;
        wait(host, &path, "state=started&timeout=1")?.refuses(404, "machine not found")?;
        Ok(())
    });
}

/// Two lives: the first stopped by its user, the second killed.
fn check_events(events: &[Value]) -> Result<()> {
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    let times: Option<Vec<u64>> = events.iter().map(|it| it["timestamp"].as_u64()).collect();
    let times = times.with_context(|| format!("times are no whole numbers: {events:?}"))?;
    ensure!(times.is_sorted_by(|newer, older| newer >= older), "not newest first: {times:?}");
    // Milliseconds since 1970, in this century.
    ensure!(
        times.iter().all(|at| (1_600_000_000_000..4_000_000_000_000).contains(at)),
        "{times:?}"
    );
    let newest = |kind: &str| kinds.iter().position(|it| *it == kind).context(kind.to_owned());
    let oldest = |kind: &str| kinds.iter().rposition(|it| *it == kind).context(kind.to_owned());
    ensure!(newest("exit")? < newest("start")?, "{kinds:?}");
    ensure!(oldest("start")? < oldest("launch")?, "`start` is not newer than `launch`: {kinds:?}");
    let exits: Vec<&Value> = events.iter().filter(|it| it["type"] == "exit").collect();
    ensure!(exits.len() == 2, "{kinds:?}");
    let exit = |at: usize| &exits[at]["request"]["exit_event"];
    ensure!(exit(1)["requested_stop"] == true, "stopped: {}", exits[1]);
    ensure!(exit(0)["requested_stop"] == false && exit(0)["restarting"] == false, "{}", exits[0]);
    for exit in [exit(0), exit(1)] {
        ensure!(exit["exit_code"] == 137 && exit["oom_killed"] == false, "{exit}");
        ensure!(exit["exited_at"].as_str().is_some_and(|at| at.contains('T')), "{exit}");
    }
    let who = |event: &Value| event["source"].as_str().is_some() && event["status"].is_string();
    ensure!(events.iter().all(who), "{events:?}");
    Ok(())
}

#[test]
fn a_wait_blocks_until_it_is_true_or_408() {
    on_host(|host| {
        let image = app_with_image(host)?;
        let config = json!({"image": image, "restart": {"policy": "no"}});
        let path = machine(host, &json!({"config": config}))?;
        wait(host, &path, "state=started&timeout=30")?.has(200)?;
        let version = get(host, &path)?.has(200)?["instance_id"].clone();
        let version = version.as_str().context("no version")?;
        wait(host, &path, "state=settled&timeout=5")?.has(200)?;
        wait(host, &path, "state=stopped&state=started&timeout=5")?.has(200)?;
        wait(host, &path, "timeout=5")?.has(200)?;
        // Old clients' word is taken and ignored.
        wait(host, &path, "state=started&instance_id=another&timeout=5")?.has(200)?;
        wait(host, &path, &format!("state=started&version={version}&timeout=5"))?.has(200)?;
        wait(host, &path, "state=started&version=another&timeout=1")?.refuses(408, "")?;
        for bad in ["state=here", "state=started&timeout=soon"] {
            wait(host, &path, bad)?.refuses(400, "the query has")?;
        }
        let begun = Instant::now();
        wait(host, &path, "state=stopped&state=suspended&timeout=1")?
            .refuses(408, "stopped or suspended")?;
        let took = begun.elapsed();
        ensure!(Duration::from_millis(950) < took, "it did not block: {took:?}");
        ensure!(took < Duration::from_secs(10), "1 s took {took:?}");
        std::thread::scope(|scope| -> Result<()> {
            let shared = &*host;
            let waiting = scope.spawn(|| wait(shared, &path, "state=stopped&timeout=60"));
            let stop = json!({"signal": "SIGKILL"});
            post(shared, &format!("{path}/stop"), &stop)?.has(200)?;
            waiting.join().ok().context("a thread panicked")??.has(200).map(drop)
        })?;
        let state = get(host, &path)?.has(200)?["state"].clone();
        ensure!(state == "stopped", "the wait ended before it was true: {state}");
        std::thread::scope(|scope| -> Result<()> {
            let shared = &*host;
            let waiting = scope.spawn(|| wait(shared, &path, "state=destroyed&timeout=60"));
            delete(shared, &path)?.has(200)?;
            waiting.join().ok().context("a thread panicked")??.has(200).map(drop)
        })
    });
}

#[test]
fn a_lease_keeps_others_out_and_ends_by_itself() {
    on_host(|host| {
        let image = app_with_image(host)?;
        let config = json!({"image": image, "restart": {"policy": "no"}});
        let input = json!({"config": config, "skip_launch": true});
        let path = machine(host, &input)?;
        let lease = format!("{path}/lease");
        let none = get(host, &lease)?.refuses(404, " lease not found")?;
        ensure!(
            none["error"].as_str().is_some_and(|it| it.ends_with(" lease not found")),
            "{none}"
        );
        // A nonce where there is no lease is tolerated.
        call(host, "POST", &path, "0123456789abcdef", &input)?.has(200)?;
        let taken = post(host, &format!("{lease}?ttl=60"), &Value::Null)?.has(201)?;
        ensure!(taken["status"] == "success", "{taken}");
        let owner = taken["data"]["owner"].as_str().context("no owner")?;
        ensure!(owner.starts_with("uid 0"), "{taken}");
        let nonce = taken["data"]["nonce"].as_str().context("no nonce")?.to_owned();
        let version = get(host, &path)?.has(200)?["instance_id"].clone();
        ensure!(taken["data"]["version"] == version, "{taken}");
        let first = taken["data"]["expires_at"].as_i64().context("no end")?;
        // Every error is retried for a minute: it comes at once, with its text.
        for held in ["", "0123456789abcdef"] {
            let refused = call(host, "POST", &format!("{lease}?ttl=60"), held, &Value::Null)?;
            refused.refuses(409, "lease currently held by uid 0")?;
            for command in ["start", "stop", "restart", "suspend", "cordon"] {
                let path = format!("{path}/{command}");
                call(host, "POST", &path, held, &Value::Null)?
                    .refuses(409, "lease currently held")?;
            }
            call(host, "POST", &path, held, &input)?.refuses(409, "lease currently held by")?;
            call(host, "DELETE", &path, held, &Value::Null)?
                .refuses(409, "lease currently held")?;
            call(host, "DELETE", &lease, held, &Value::Null)?
                .refuses(409, "lease currently held")?;
        }
        let shown = get(host, &lease)?.has(200)?;
        ensure!(shown["data"]["nonce"] == "", "its nonce is its holder's: {shown}");
        let longer = format!("{lease}?ttl=3000");
        let refreshed = call(host, "POST", &longer, &nonce, &Value::Null)?.has(201)?;
        ensure!(refreshed["data"]["nonce"] == nonce.as_str(), "another nonce: {refreshed}");
        ensure!(refreshed["data"]["expires_at"].as_i64() >= Some(first + 2_900), "{refreshed}");
        call(host, "POST", &path, &nonce, &input)?.has(200)?;
        call(host, "DELETE", &lease, &nonce, &Value::Null)?.has(200)?;
        get(host, &lease)?.refuses(404, " lease not found")?;
        // A refresh that its holder's end has overtaken holds nothing.
        call(host, "POST", &longer, &nonce, &Value::Null)?.refuses(404, " lease not found")?;
        post(host, &path, &input)?.has(200)?;
        // A lease that nobody extends ends, and not before its time.
        let asked = Instant::now();
        post(host, &format!("{lease}?ttl=1"), &Value::Null)?.has(201)?;
        let other = post(host, &path, &input)?;
        if asked.elapsed() < Duration::from_secs(1) {
            other.refuses(409, "lease currently held by")?;
        }
        wait_until("the lease to end", SOON, || {
            Ok((post(host, &path, &input)?.raw.status == 200).then_some(()))
        })?;
        // A Machine that is made with a lease says its nonce once, in that answer.
        let input = json!({"config": config, "skip_launch": true, "lease_ttl": 60});
        let made = post(host, "/v1/apps/web/machines", &input)?.has(200)?;
        let nonce = made["nonce"].as_str().context("no nonce")?;
        let path = format!("/v1/apps/web/machines/{}", made["id"].as_str().context("no id")?);
        let read = get(host, &path)?.has(200)?;
        ensure!(read.get("nonce").is_none_or(Value::is_null), "{read}");
        delete(host, &path)?.refuses(409, "lease currently held by")?;
        call(host, "DELETE", &format!("{path}?kill=true"), nonce, &Value::Null)?.has(200).map(drop)
    });
}

#[test]
fn secrets_have_versions_that_machines_can_insist_on() {
    on_host(|host| {
        const ALL: &str = "/v1/apps/web/secrets";
        let image = app_with_image(host)?;
        ensure!(get(host, ALL)?.has(200)?["secrets"] == json!([]), "not an empty list");
        let set = json!({"values": {"B": "b", "A": "a"}});
        let answer = post(host, ALL, &set)?.has(200)?;
        let version = answer["version"].as_u64().context("no version")?;
        ensure!(answer["secrets"].as_array().is_some_and(|it| it.len() == 2), "{answer}");
        let answer = post(host, ALL, &json!({"values": {"A": "other", "B": null, "GONE": null}}))?;
        let answer = answer.has(200)?;
        ensure!(answer["version"].as_u64() == Some(version + 1), "not the next: {answer}");
        let only = &answer["secrets"][0];
        ensure!(
            only["name"] == "A" && answer["secrets"].as_array().map(Vec::len) == Some(1),
            "{answer}"
        );
        for key in ["digest", "created_at", "updated_at"] {
            ensure!(only[key].as_str().is_some_and(|it| !it.is_empty()), "{only}");
        }
        ensure!(only.get("value").is_none(), "{only}");
        // What its client remembers as the newest version is there, or it is told.
        let next = version + 2;
        get(host, &format!("{ALL}?version={}", version + 1))?.has(200)?;
        get(host, &format!("{ALL}?version={next}"))?.refuses(422, &next.to_string())?;
        get(host, &format!("{ALL}?show_secrets=true"))?.refuses(403, "not shown")?;
        let config = json!({"image": image, "restart": {"policy": "no"}});
        let wanting = |version: u64| json!({"config": config, "skip_launch": true, "min_secrets_version": version});
        post(host, "/v1/apps/web/machines", &wanting(next))?.refuses(422, &next.to_string())?;
        let path = machine(host, &wanting(version + 1))?;
        post(host, &path, &wanting(next))?.refuses(422, &next.to_string())?;
        post(host, &path, &wanting(version + 1))?.has(200)?;
        let left = get(host, "/v1/apps/web/machines")?.has(200)?;
        let left = left.as_array().context("no list")?.len();
        ensure!(left == 1, "a refused Machine is there: {left}");
        Ok(())
    });
}

#[test]
fn facts_have_flyctls_shapes() {
    on_host(|host| {
        let regions = get(host, "/v1/platform/regions")?.has(200)?;
        ensure!(regions["Nearest"] == "lcl" && regions["Regions"][0]["code"] == "lcl", "{regions}");
        ensure!(regions["Regions"][0]["deprecated"] == false, "{regions}");
        let org = get(host, "/api/v1/organizations/personal")?.has(200)?["organization"].clone();
        ensure!(org["slug"] == "personal" && org["raw_slug"] == "personal", "{org}");
        // A number here; without `billable` a deploy makes one Machine instead of two.
        ensure!(org["internal_numeric_id"].is_u64() && org["id"].is_string(), "{org}");
        ensure!(org["billable"] == true && org["billing_status"] == "CURRENT", "{org}");
        get(host, "/api/v1/organizations/nobody")?.refuses(404, "nobody")?;
        let all = get(host, "/api/v1/organizations?admin=false")?.has(200)?;
        ensure!(all["organizations"][0]["slug"] == "personal", "{all}");
        Ok(())
    });
}

#[test]
fn releases_are_made_moved_on_and_paged() {
    on_host(|host| {
        post(host, "/v1/apps", &json!({"name": "web"}))?.has(201)?;
        get(host, "/api/v1/apps/web/releases/current")?.has(404)?;
        let definition = json!({"app": "web", "odd": [null, {"x": 1.50}], "env": null});
        let input = json!({
            "app_name": "web", "build_id": 0, "image": "registry.perch/web:1", "strategy": "ROLLING", "definition": definition,
        });
        let mut versions = Vec::new();
        for _ in 0..3 {
            let made = post(host, "/api/v1/releases", &input)?.has(201)?["release"].clone();
            versions.push(made["version"].as_u64().context("no version")?);
            ensure!(made["created_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{made}");
            let path = format!("/api/v1/releases/{}", made["id"].as_str().context("no id")?);
            let running = json!({"status": "running", "metadata": {}});
            let moved = call(host, "PATCH", &path, "", &running)?.has(200)?;
            ensure!(moved["status"] == "running" && moved["in_progress"] == true, "{moved}");
            // Two deploys at once are two plans for one app.
            post(host, "/api/v1/releases", &input)?.refuses(409, "currently held by")?;
            let done = call(host, "PATCH", &path, "", &json!({"status": "complete"}))?.has(200)?;
            ensure!(done["status"] == "complete" && done["in_progress"] == false, "{done}");
        }
        ensure!(versions.is_sorted_by(|older, newer| older < newer), "{versions:?}");
        let listed = |query: &str| -> Result<Vec<u64>> {
            let page = get(host, &format!("/api/v1/apps/web/releases{query}"))?.has(200)?;
            let page = page["releases"].as_array().context("no list")?.clone();
            Ok(page.iter().filter_map(|it| it["version"].as_u64()).collect())
        };
        versions.reverse();
        ensure!(
            listed("")? == versions && listed("?limit=2")? == versions[..2],
            "not newest first"
        );
        let current = get(host, "/api/v1/apps/web/releases/current")?.has(200)?;
        ensure!(current["version"].as_u64() == Some(versions[0]), "{current}");
        ensure!(current["user"].is_string() && current["image_ref"].is_string(), "{current}");
        let unknown =
            call(host, "PATCH", "/api/v1/releases/none", "", &json!({"status": "failed"}));
        unknown?.refuses(404, "none")?;
        let bad =
            json!({"app_name": "nobody", "image": "x", "strategy": "ROLLING", "definition": {}});
        post(host, "/api/v1/releases", &bad)?.refuses(404, "Could not find App")?;
        Ok(())
    });
}

#[test]
fn logs_are_paged_by_a_token_that_advances() {
    on_host(|host| {
        let script = "echo one; echo two; exec busybox httpd -f -p 0.0.0.0:8081 -h /tmp";
        let image = shell_image(host, "talks", script)?;
        crate::stage::private_app_of(host, "web", &image, AWAKE)?;
        let page = |query: &str| get(host, &format!("/api/v1/apps/web/logs?{query}"))?.has(200);
        let texts = |page: &Value| -> Vec<String> {
            let lines = page["data"].as_array().cloned().unwrap_or_default();
            let text = |line: &Value| line["attributes"]["message"].as_str().map(str::to_owned);
            lines.iter().filter_map(text).collect()
        };
        let first = wait_until("both lines", SOON, || {
            let page = page("next_token=&instance=&region=&hold_ms=1")?;
            let all = texts(&page);
            Ok((all.iter().any(|it| it == "one") && all.iter().any(|it| it == "two"))
                .then_some(page))
        })?;
        let line = first["data"].as_array().into_iter().flatten();
        let line =
            line.clone().find(|it| it["attributes"]["message"] == "one").context("no line")?;
        let of = &line["attributes"];
        ensure!(
            of["timestamp"].as_str().is_some_and(|at| at.ends_with('Z') && at.contains('T')),
            "{line}"
        );
        ensure!(of["level"] == "info" && of["region"] == "lcl", "{line}");
        ensure!(of["meta"]["event"]["provider"] == "app" && line["id"].is_string(), "{line}");
        let instance = of["instance"].as_str().context("no instance")?;
        let token = first["meta"]["next_token"].as_str().context("no token")?;
        ensure!(!token.is_empty(), "it stays where it was");
        // After its end there is nothing, and the token stays good.
        let rest = page(&format!("next_token={token}&hold_ms=1"))?;
        let again = rest["meta"]["next_token"].as_str().unwrap_or_default();
        ensure!(!texts(&rest).contains(&"one".to_owned()), "the same lines again: {rest}");
        ensure!(again.is_empty() || again >= token, "{again} is before {token}");
        let own = page(&format!("instance={instance}&hold_ms=1"))?;
        ensure!(texts(&own).contains(&"two".to_owned()), "{own}");
        for elsewhere in ["region=fra&hold_ms=1", "instance=00000000000000&hold_ms=1"] {
            ensure!(texts(&page(elsewhere)?).is_empty(), "{elsewhere}");
        }
        let begun = Instant::now();
        page("region=fra&hold_ms=300")?;
        ensure!(Duration::from_millis(290) < begun.elapsed(), "an empty page was not held");
        get(host, "/api/v1/apps/nobody/logs?hold_ms=1")?.refuses(404, "Could not find App")?;
        Ok(())
    });
}
