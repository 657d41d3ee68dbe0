// Settings, General: language, appearance, how long to think, what the reasoning panel does.

import { canNotify, isNotifying, mayNotify, wishNotifications } from "../bell.js";
import { element } from "../dom.js";
import { me } from "../me.js";
import { chime } from "../sound.js";
import { TEXT } from "../texts.js";
import { checkbox, Field } from "./fields.js";

export function general(settings) {
  const texts = TEXT.settings;
  const choice = (name, label, options, { rule, onSaved } = {}) => {
    const field = new Field({ label, rule, tag: "select", options, name });
    field.value = me.settings[name];
    field.input.addEventListener("change", async () => {
      if (await settings.save({ [name]: field.value })) onSaved?.();
    });
    return field;
  };
  const onLanguage = () => settings.page.reload() || settings.tell(texts.languageLater);
  const language = choice("language", texts.language, texts.languages, { onSaved: onLanguage });
  const flip = (name, label) => checkbox(label, { isOn: me.settings[name], onChange: (isOn) => settings.save({ [name]: isOn }), name }).root;
  const panel = element(
    "fieldset",
    {},
    element("legend", { text: texts.panel }),
    flip("panel_opens", texts.panelOpens),
    flip("panel_figures", texts.panelFigures),
    flip("panel_follows", texts.panelFollows),
  );
  const fields = [language, choice("theme", texts.theme, texts.themes), choice("effort", texts.effort, TEXT.efforts, { rule: texts.effortHint })];
  return { parts: [...fields.map(({ root }) => root), panel, telling(settings)] };
}

/** How to be told of an answer. */
function telling(settings) {
  const { whenReady, notify, notifyBlocked, notifyNever, sound } = TEXT.settings;
  const about = !canNotify() ? notifyNever : mayNotify() ? "" : notifyBlocked;
  const onNotify = async (isOn) => {
    if (!isOn) {
      settings.save({ notify: "off" });
      return;
    }
    const isGranted = await wishNotifications().catch((error) => settings.tell(error.message, { isBad: true }));
    wish.input.checked = Boolean(isGranted);
    if (isGranted) settings.tellSaved();
    else if (isGranted === false) settings.tell(notifyBlocked, { isBad: true });
  };
  const wish = checkbox(notify, { isOn: isNotifying(), onChange: onNotify, about, name: "notify", disabled: Boolean(about) });
  const onSound = (isOn) => {
    if (isOn) chime();
    settings.save({ sound: isOn });
  };
  return element("fieldset", {}, element("legend", { text: whenReady }), wish.root, checkbox(sound, { isOn: me.settings.sound, onChange: onSound, name: "sound" }).root);
}
