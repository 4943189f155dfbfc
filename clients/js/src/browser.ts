/** What a browser tells a client: visibility, online, pageshow, freeze and wake. */
export {};
