// Buttons that lead to a provider and back.

import { api, isFramed } from "../api.js";
import { button, element } from "../dom.js";
import { me } from "../me.js";
import { TEXT } from "../texts.js";

/** Where the provider sends the browser back to: the chat that is shown, or what the caller says. */
const here = () => (/^#\/c\/[\w-]+$/.test(location.hash) ? `/${location.hash}` : "/");

/** Leave for the provider with the whole page; a problem comes back as `#/sign-in/{problem}`. `purpose` is "sign_in", "link" or "confirm". */
export async function leaveFor(name, purpose, { claimGuest = false, next = here() } = {}) {
  const { location: address } = await api.startProvider(name, { purpose, claim_guest: claimGuest, next });
  location.assign(address);
}

/** One way to sign in per provider; inside a frame, providers refuse to be shown: there it is a link to a new tab. */
export function signInButtons({ isClaiming, onProblem }) {
  return me.site.providers.map(({ name, label }) => {
    if (isFramed) {
      const texts = { text: TEXT.signIn.providerInTab(label), className: "provider" };
      return element("a", { href: api.providerLogin(name), target: "_blank", rel: "noopener", ...texts });
    }
    const go = () => leaveFor(name, "sign_in", { claimGuest: isClaiming() }).catch((error) => onProblem(error.message));
    return button(TEXT.signIn.provider(label), go, { className: "provider" });
  });
}
