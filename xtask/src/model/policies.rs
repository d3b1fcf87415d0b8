//! Attention policies by name, as command lines spell them: `NAME`, or `NAME:{...}` with settings in JSON.

use std::str::FromStr;

use anyhow::{Error, Result, anyhow, bail};
use attn_flexprefill::policy::FlexPrefillPolicy;
use attn_model::AttentionPolicy;
use attn_model::policy::{Dense, SinkWindow};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Every policy that the commands know.
const KNOWN: &[(&str, Make)] = &[
    ("dense", dense),
    ("flexprefill", flexprefill),
    ("sink-window", by_settings::<SinkWindow>), //
];

/// From settings to a policy; an empty object stands for the defaults.
type Make = fn(Value) -> Result<Made>;

struct Made {
    policy: Box<dyn AttentionPolicy>,
    /// All settings, the defaults among them.
    config: Value,
}

/// A policy that was asked for. Each session needs one of its own, so this makes as many as are wanted.
#[derive(Debug, Clone)]
pub struct Choice {
    /// As it was written.
    pub label: String,
    pub record: Record,
    make: Make,
}

/// A policy in reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    /// All settings, the defaults among them.
    pub config: Value,
}

impl Choice {
    /// A new policy, without any state.
    pub fn policy(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok((self.make)(self.record.config.clone())?.policy)
    }
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(label: &str) -> Result<Self> {
        let (name, settings) = match label.split_once(':') {
            Some((name, json)) => (name, serde_json::from_str(json)),
            None => (label, Ok(Value::Object(Map::new()))),
        };
        let Some((name, make)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            let names: Vec<_> = KNOWN.iter().map(|(name, _)| *name).collect();
            bail!("there is no policy `{name}`; there are {}", names.join(", "));
        };
        // Clap shows an error without its causes.
        let bad = |error: Error| anyhow!("settings of `{name}`: {error:#}");
        let made = settings.map_err(Error::new).and_then(make).map_err(bad)?;
        let record = Record { name: (*name).into(), config: made.config };
        Ok(Choice { label: label.into(), record, make: *make })
    }
}

/// Those that were given, or the model's own attention.
pub fn or_dense(given: &[Choice]) -> Result<Vec<Choice>> {
    if given.is_empty() { Ok(vec!["dense".parse()?]) } else { Ok(given.to_vec()) }
}

fn dense(config: Value) -> Result<Made> {
    if config.as_object().is_none_or(|settings| !settings.is_empty()) {
        bail!("expected none, got {config}");
    }
    Ok(Made { policy: Box::new(Dense), config })
}

fn flexprefill(config: Value) -> Result<Made> {
    let config: attn_flexprefill::Config = serde_json::from_value(config)?;
    config.validate()?;
    let policy = Box::new(FlexPrefillPolicy::new(config.clone()));
    Ok(Made { policy, config: serde_json::to_value(config)? })
}

/// A policy that is its own settings.
fn by_settings<P: AttentionPolicy + Serialize + DeserializeOwned>(config: Value) -> Result<Made> {
    let policy: P = serde_json::from_value(config)?;
    let config = serde_json::to_value(&policy)?;
    Ok(Made { policy: Box::new(policy), config })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(label: &str) -> String {
        label.parse::<Choice>().unwrap_err().to_string()
    }

    #[test]
    fn names_alone_mean_defaults() {
        for (name, _) in KNOWN {
            let choice: Choice = name.parse().unwrap();
            assert_eq!((choice.label.as_str(), choice.record.name.as_str()), (*name, *name));
            let again = format!("{name}:{}", choice.record.config).parse::<Choice>().unwrap();
            assert_eq!(again.record, choice.record);
            choice.policy().unwrap();
        }
        assert_eq!(or_dense(&[]).unwrap()[0].record.name, "dense");
    }

    #[test]
    fn settings() {
        let choice: Choice = r#"sink-window:{"window":9,"positions":"text"}"#.parse().unwrap();
        let expected = json!({ "sinks": 4, "window": 9, "positions": "text" });
        assert_eq!(choice.record.config, expected);
        let policy = format!("{:?}", choice.policy().unwrap());
        assert!(policy.contains("window: 9"), "{policy}");

        let choice: Choice =
            r#"flexprefill:{"block":64,"min_budget":null,"budget_rule":"tokens_div"}"#.parse().unwrap();
        let config = &choice.record.config;
        assert_eq!((&config["block"], &config["gamma"]), (&json!(64), &json!(0.95)));
        assert_eq!((&config["min_budget"], &config["slash_both"]), (&Value::Null, &json!(false)));
        let policy = format!("{:?}", choice.policy().unwrap());
        assert!(policy.contains("block: 64") && policy.contains("TokensDiv"), "{policy}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(
            error("dens"),
            "there is no policy `dens`; there are dense, flexprefill, sink-window"
        );
        let text = error(r#"sink-window:{"windw":9}"#);
        assert!(text.starts_with("settings of `sink-window`: unknown field `windw`"), "{text}");
        let text = error(r#"sink-window:{"window":9"#);
        assert!(text.contains("EOF while parsing an object"), "{text}");
        assert!(error(r#"sink-window:{"window":-1}"#).contains("-1"));
        assert_eq!(error(r#"dense:{"a":1}"#), r#"settings of `dense`: expected none, got {"a":1}"#);
        assert!(error("sink-window:3").contains("invalid type"));
        let text = error(r#"flexprefill:{"gama":0.9}"#);
        assert!(text.starts_with("settings of `flexprefill`: unknown field `gama`"), "{text}");
        let text = error(r#"flexprefill:{"gamma":0}"#);
        assert!(text.starts_with("settings of `flexprefill`: `gamma` is 0"), "{text}");
    }
}
