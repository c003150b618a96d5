//! Which addresses a deploy gives an app (DESIGN 11, IA-10, FC-16, FC-19).
//!
//! | wish | the app has no address | it has some |
//! |---|---|---|
//! | private (`--flycast`, kept with the app) | one private IPv6, at any deploy | `--flycast` now: a private one if it has none |
//! | public (default) | public IPv6 and shared IPv4, at the first deploy only | nothing |
//! | none (`--no-public-ips`) | nothing | nothing |
//!
//! Later deploys never give public addresses: somebody who released them wants the app private.

use super::super::Context;
use super::Job;
use crate::failure::Outcome;
use perch_api::wire::{AddressIntent, AppPatch, AssignIp, IpAssignment, IpKind};

/// Whether this deploy is an app's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    First,
    Later,
}

/// Gives the app what it should have. A refusal is printed and does not end the deploy (DE-02).
pub(super) async fn ensure(context: &Context<'_>, job: &Job, occasion: Occasion) -> Outcome {
    let services = job.config.http_service.is_some() || !job.config.services.is_empty();
    let intent = remember_intent(context, job).await?;
    if !services {
        return Ok(());
    }
    let had = context.client.list_ips(&job.app.name).await?;
    let kinds = wanted(intent, occasion, job.options.flycast, &had);
    if kinds.is_empty() {
        return Ok(());
    }
    announce(context, job, &kinds);
    for kind in kinds {
        context.interrupt.check()?;
        match context.client.assign_ip(&job.app.name, &AssignIp::of_kind(kind)).await {
            Ok(address) => {
                let ip = address.ip;
                context.console.line(format!("  {}: {ip}", kind_text(kind)));
            }
            Err(error) => context.console.line(format!("  {}: {error}", kind_text(kind))),
        }
    }
    context.console.line("");
    Ok(())
}

/// A flag on this deploy is the app's wish from now on.
async fn remember_intent(context: &Context<'_>, job: &Job) -> Outcome<AddressIntent> {
    let asked = match (job.options.flycast, job.options.no_public_ips) {
        (true, _) => AddressIntent::Private,
        (false, true) => AddressIntent::None,
        (false, false) => return Ok(job.app.address_intent),
    };
    if asked != job.app.address_intent {
        let patch = AppPatch { address_intent: Some(asked) };
        context.client.update_app(&job.app.name, &patch).await?;
    }
    Ok(asked)
}

fn wanted(
    intent: AddressIntent,
    occasion: Occasion,
    flycast: bool,
    had: &[IpAssignment],
) -> Vec<IpKind> {
    let has_private = had.iter().any(|address| address.kind == IpKind::PrivateV6);
    match intent {
        AddressIntent::Private if had.is_empty() || (flycast && !has_private) => {
            vec![IpKind::PrivateV6]
        }
        AddressIntent::Public if had.is_empty() && occasion == Occasion::First => {
            vec![IpKind::V6, IpKind::SharedV4]
        }
        AddressIntent::Private | AddressIntent::Public | AddressIntent::None => Vec::new(),
    }
}

fn announce(context: &Context<'_>, job: &Job, kinds: &[IpKind]) {
    let what = if kinds == [IpKind::PrivateV6] { "ip address" } else { "ips" };
    context.console.line(format!("Provisioning {what} for {}", job.app.name));
}

fn kind_text(kind: IpKind) -> &'static str {
    match kind {
        IpKind::V4 => "Dedicated ipv4",
        IpKind::SharedV4 => "Shared ipv4",
        IpKind::V6 => "Dedicated ipv6",
        IpKind::PrivateV6 => "Private ipv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(kind: IpKind) -> IpAssignment {
        IpAssignment {
            ip: std::net::Ipv6Addr::LOCALHOST.into(),
            kind,
            region: String::new(),
            service_name: String::new(),
            shared: false,
            created_at: String::new(),
            network: None,
        }
    }

    #[test]
    fn public_addresses_are_given_at_the_first_deploy_only() {
        use AddressIntent::Public;
        let both = [IpKind::V6, IpKind::SharedV4];
        assert_eq!(wanted(Public, Occasion::First, false, &[]), both);
        assert_eq!(wanted(Public, Occasion::Later, false, &[]), []);
        let private = [address(IpKind::PrivateV6)];
        assert_eq!(wanted(Public, Occasion::First, false, &private), []);
    }

    #[test]
    fn the_wish_for_a_private_address_survives_until_there_is_one() {
        use AddressIntent::Private;
        assert_eq!(wanted(Private, Occasion::Later, false, &[]), [IpKind::PrivateV6]);
        let public = [address(IpKind::V6)];
        assert_eq!(wanted(Private, Occasion::Later, false, &public), []);
        assert_eq!(wanted(Private, Occasion::Later, true, &public), [IpKind::PrivateV6]);
        assert_eq!(wanted(AddressIntent::None, Occasion::First, false, &[]), []);
    }
}
