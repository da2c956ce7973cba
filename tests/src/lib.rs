//! Tests that need more than one crate: conformance, scenarios, hostile peers.
