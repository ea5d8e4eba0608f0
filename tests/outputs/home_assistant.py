"""A real Home Assistant in a Python of its own, which writes down what it knows: `PYTHON home_assistant.py FOLDER PORT FILE WEB`.

It has nothing but its MQTT integration, with the broker at PORT of this machine. FILE holds, as JSON and anew each quarter of a
second, the state of each entity, and the platform and unique id of each that is registered. WEB is the port of its own pages.
"""

import asyncio
import json
import sys
from pathlib import Path

ENTRY = {
    "entry_id": "broker",
    "version": 1,
    "domain": "mqtt",
    "title": "broker",
    "options": {},
    "pref_disable_new_entities": False,
    "pref_disable_polling": False,
    "source": "user",
    "unique_id": None,
    "disabled_by": None,
}


async def main(folder: Path, port: int, file: Path, web_port: int) -> None:
    from homeassistant import bootstrap, runner
    from homeassistant.helpers import entity_registry

    bootstrap.CRITICAL_INTEGRATIONS.clear()  # no page is wanted, whose packages are large
    (folder / ".storage").mkdir(parents=True, exist_ok=True)
    entry = ENTRY | {
        "data": {"broker": "127.0.0.1", "port": port, "discovery": True, "discovery_prefix": "homeassistant"}
    }
    kept = {"version": 1, "minor_version": 1, "key": "core.config_entries", "data": {"entries": [entry]}}
    (folder / ".storage/core.config_entries").write_text(json.dumps(kept))
    web = {"http": {"server_host": "127.0.0.1", "server_port": web_port}}
    (folder / "configuration.yaml").write_text(json.dumps(web))
    hass = await bootstrap.async_setup_hass(runner.RuntimeConfig(config_dir=str(folder), skip_pip=True))
    assert hass is not None
    await hass.async_start()
    while True:
        known = entity_registry.async_get(hass).entities.values()
        facts = {
            "states": {state.entity_id: state.state for state in hass.states.async_all()},
            "registered": sorted([each.entity_id, each.unique_id] for each in known if each.platform == "mqtt"),
        }
        new = file.with_suffix(".new")
        new.write_text(json.dumps(facts))
        new.rename(file)
        await asyncio.sleep(0.25)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
