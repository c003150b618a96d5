use super::*;

const ORG: &str = "personal";

fn who(text: &str) -> Who {
    text.parse().expect(text)
}

fn rule(from: &[&str], methods: &[&str], paths: &[&str], then: Verdict) -> Rule {
    let texts = |all: &[&str]| all.iter().map(|text| (*text).into()).collect();
    let from = from.iter().map(|text| who(text)).collect();
    Rule { from, methods: texts(methods), paths: texts(paths), then }
}

fn policy(rules: &[Rule]) -> Policy {
    Policy { rules: rules.into() }
}

fn app(name: &str) -> Caller<'_> {
    Caller { app: Some(name), network: Some((ORG, "default")), peer: None }
}

fn peer(name: &str) -> Caller<'_> {
    Caller { app: None, network: Some((ORG, "default")), peer: Some(name) }
}

fn get<'a>(caller: Caller<'a>, path: &'a str) -> Call<'a> {
    Call { caller, org: ORG, request: Some(("GET", path)) }
}

fn raw(caller: Caller<'_>) -> Call<'_> {
    Call { caller, org: ORG, request: None }
}

#[test]
fn nobody_is_named_by_what_is_no_name() {
    for bad in ["", "app", "app:", "app:A B", "org:x", "network:", "network:a/", "network:a/b/c"] {
        assert!(bad.parse::<Who>().is_err(), "{bad:?}");
    }
    for bad in ["peer:", "Host", "host:", "app:*", "peer:a b", "peer:a\n"] {
        let error = bad.parse::<Who>().expect_err(bad).to_string();
        assert!(error.contains("app:NAME"), "{error}");
    }
    assert_eq!(who("host"), who("peer:host"));
    assert_ne!(who("network:a"), who("network:b/a"));
}

#[test]
fn only_what_can_be_meant_is_a_method_or_a_path() {
    assert!(is_method("GET") && is_method("M-SEARCH") && is_path("/") && is_path("/a/b/"));
    for bad in ["", "get", "GET ", "*"] {
        assert!(!is_method(bad), "{bad:?}");
    }
    for bad in ["", "a", "/a//b", "/../a", "/a?b", "/%61", "/a b", "*"] {
        assert!(!is_path(bad), "{bad:?}");
    }
    for verdict in Verdict::ALL {
        assert_eq!(verdict.as_str().parse(), Ok(verdict));
    }
    assert!("Wake".parse::<Verdict>().is_err());
}

#[test]
fn where_there_are_rules_and_none_fits_the_call_is_refused() {
    let rules = policy(&[rule(&["app:web"], &[], &[], Verdict::Wake)]);
    assert_eq!(rules.decide(&get(app("web"), "/")), (Verdict::Wake, Reason::Rule(1)));
    assert_eq!(rules.decide(&get(app("evil"), "/")), (Verdict::Refuse, Reason::NoneFits));
    assert_eq!(rules.decide(&raw(peer("host"))).0, Verdict::Refuse);
    assert_eq!(rules.decide(&raw(Caller::default())).0, Verdict::Refuse);
    assert_eq!(Policy::default().decide(&raw(Caller::default())).0, Verdict::Wake);
}

#[test]
fn the_first_rule_that_fits_decides() {
    let rules = policy(&[
        rule(&["app:cron"], &["GET"], &["/health"], Verdict::ServeIfAwake),
        rule(&["app:cron"], &[], &[], Verdict::Refuse),
        rule(&[], &[], &[], Verdict::Wake),
    ]);
    let decided = |call| rules.decide(&call);
    assert_eq!(decided(get(app("cron"), "/health?x=/")), (Verdict::ServeIfAwake, Reason::Rule(1)));
    assert_eq!(decided(get(app("cron"), "/")), (Verdict::Refuse, Reason::Rule(2)));
    let post = Call { request: Some(("POST", "/health")), ..raw(app("cron")) };
    assert_eq!(decided(post).1, Reason::Rule(2));
    assert_eq!(decided(raw(app("cron"))).1, Reason::Rule(2), "bytes have no method");
    assert_eq!(decided(get(peer("host"), "/")), (Verdict::Wake, Reason::Rule(3)));
}

#[test]
fn a_network_is_one_of_the_called_apps_organization_unless_the_rule_says_another() {
    let from = |network| Caller { app: Some("web"), network: Some(network), peer: None };
    let fits = |text: &str, network| {
        let rules = policy(&[rule(&[text], &[], &[], Verdict::Wake)]);
        rules.decide(&raw(from(network))).0 == Verdict::Wake
    };
    assert!(fits("network:default", (ORG, "default")));
    assert!(!fits("network:default", ("team", "default")));
    assert!(fits("network:team/default", ("team", "default")));
    assert!(!fits("network:team/default", (ORG, "default")));
}

#[test]
fn paths_fit_by_whole_segments() {
    let fits = |prefix: &str, path: &str| {
        let rules = policy(&[rule(&[], &[], &[prefix], Verdict::Wake)]);
        rules.decide(&get(app("web"), path)).0 == Verdict::Wake
    };
    for path in ["/api", "/api/", "/api/x", "/api?x", "/api;x"] {
        assert!(fits("/api", path) && fits("/", path), "{path}");
    }
    for path in ["/apis", "/", "/ap", "/API", "/x/api", "*"] {
        assert!(!fits("/api", path), "{path}");
    }
    assert!(fits("/api/", "/api/x") && !fits("/api/", "/api"));
}

#[test]
fn a_path_that_programs_read_differently_is_refused_where_rules_look_at_paths() {
    let rules =
        policy(&[rule(&[], &[], &["/admin"], Verdict::Refuse), rule(&[], &[], &[], Verdict::Wake)]);
    for path in [
        "//admin",
        "/x/../admin",
        "/./admin",
        "/%61dmin",
        "/x%2fadmin",
        "/x/..;/admin",
        "/;x/admin",
        "/x\\admin",
        "/%2e%2e/admin",
        "/%",
        "/%zz",
        "/%00",
        "/%2561dmin",
        "/x/..",
    ] {
        assert_eq!(rules.decide(&get(app("a"), path)).1, Reason::UnclearPath, "{path}");
    }
    for path in ["/", "/x/", "/caf%C3%A9/%20x", "/x?a=//&b=%61", "/.well-known/x", "/a;b"] {
        assert_eq!(rules.decide(&get(app("a"), path)).0, Verdict::Wake, "{path}");
    }
    let open = policy(&[rule(&["app:a"], &[], &[], Verdict::Wake)]);
    assert_eq!(open.decide(&get(app("a"), "//x")).0, Verdict::Wake, "nobody looks at it");
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn some(&mut self, of: &[&'static str]) -> Vec<&'static str> {
        (0..self.roll(3)).map(|_| of[self.roll(of.len())]).collect()
    }
}

const CALLERS: [&str; 3] = ["app:a", "app:b", "host"];
const METHODS: [&str; 2] = ["GET", "POST"];
const PATHS: [&str; 4] = ["/", "/a", "/a/b", "/b"];

/// The rule book as a reader of the manual would apply it.
fn by_hand(rules: &[Rule], from: &str, request: Option<(&str, &str)>) -> Verdict {
    for rule in rules {
        let who = rule.from.is_empty() || rule.from.contains(&who(from));
        let needs_request = !rule.methods.is_empty() || !rule.paths.is_empty();
        let fits = match request {
            None => !needs_request,
            Some((method, path)) => {
                let below = |prefix: &str| {
                    path == prefix
                        || path.starts_with(&format!("{}/", prefix.trim_end_matches('/')))
                };
                (rule.methods.is_empty() || rule.methods.iter().any(|it| **it == *method))
                    && (rule.paths.is_empty() || rule.paths.iter().any(|it| below(it)))
            }
        };
        if who && fits {
            return rule.then;
        }
    }
    if rules.is_empty() { Verdict::Wake } else { Verdict::Refuse }
}

#[test]
fn random_rules_decide_as_they_are_read_and_what_no_rule_allows_is_refused() {
    let mut dice = Dice(7);
    for _ in 0..20_000 {
        let rules: Vec<Rule> = (0..dice.roll(5))
            .map(|_| {
                let (from, methods) = (dice.some(&CALLERS), dice.some(&METHODS));
                let then = Verdict::ALL[dice.roll(3)];
                rule(&from, &methods, &dice.some(&PATHS), then)
            })
            .collect();
        let from = CALLERS[dice.roll(3)];
        let request = (dice.roll(4) != 0).then(|| (METHODS[dice.roll(2)], PATHS[dice.roll(4)]));
        let caller = from.strip_prefix("app:").map_or(peer("host"), app);
        let call = Call { caller, org: ORG, request };
        let (verdict, reason) = policy(&rules).decide(&call);
        assert_eq!(verdict, by_hand(&rules, from, request), "{rules:?} {call:?}");
        let allowed = rules.iter().any(|rule| rule.then != Verdict::Refuse) || rules.is_empty();
        assert!(allowed || verdict == Verdict::Refuse, "{rules:?} {call:?} {reason:?}");
    }
}
