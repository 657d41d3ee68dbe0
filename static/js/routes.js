// What an address means. A chat and the administration fill the middle; dialogs open over what is shown.

/** `{kind, id}`: "chat" (id null is a new one), "temporary" (a new one of these), "admin", or a dialog: "settings" (id is the section), "sign-in" (the problem). */
export function placeOf(hash) {
  const [, kind, id = null] = /^#\/(c|admin|settings|sign-in|temporary)(?:\/([\w-]+))?$/.exec(hash) ?? [];
  if (kind === "c" && id) return { kind: "chat", id };
  if (kind && kind !== "c") return { kind, id };
  return { kind: "chat", id: null };
}

export const isDialog = ({ kind }) => kind === "settings" || kind === "sign-in";
