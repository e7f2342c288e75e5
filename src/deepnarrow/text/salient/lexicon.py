"""The word lists of the built-in name tagger, written by hand but for the last.

They are short on purpose: a list decides only where spelling cannot. `ORDINARY` alone was counted: it holds the words
that in some 20 MB of public English text (encyclopedia, web, novels) opened a sentence, stood in small letters 20 times
or more, and five times as often as with a capital inside a sentence. It lies beside this file as openers.txt.
"""

from importlib.resources import files


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of grammar, in small letters. With a capital they open a sentence or a title; alone they are never a name.
GRAMMAR = words(
    """a an the this that these those such same each every either neither both all any some many most much more few
    several enough no none nothing nobody one two three four five six seven eight nine ten eleven twelve dozens
    hundreds thousands millions another other others i me my mine myself you your yours he him his himself she
    her hers herself it its itself we us our ours they them their theirs who whom whose which what whatever
    whoever when whenever where wherever why how however in on at by of to from with without within into onto
    upon over under underneath above below beneath between beyond behind before after afterwards around about
    across along alongside against among amongst amid near nearby next until till since during throughout
    through per via despite notwithstanding except excluding including regarding concerning considering
    following given according owing due thanks like unlike as than and but or nor so yet for if unless whether
    while whilst whereas because although though even once thus hence therefore moreover furthermore
    nevertheless nonetheless meanwhile otherwise instead besides indeed also too then there here now today
    tomorrow yesterday later soon again still already always often sometimes usually never only just perhaps
    maybe not is are was were be been being am has have had having do does did done can could may might must
    shall should will would let first second third last finally formerly originally initially eventually
    recently currently approximately nearly almost roughly yes oh ah well please note see cf ie eg ii iii iv vi
    vii viii ix dont doesnt ok okay hello hi hey inside outside toward towards up down out off away back""",
)
NEVER = words(
    """Monday Tuesday Wednesday Thursday Friday Saturday Sunday Mondays Tuesdays Wednesdays Thursdays Fridays Saturdays
    Sundays January February March April May June July August September October November December Jan Feb Mar
    Apr Jun Jul Aug Sep Sept Oct Nov Dec Spring Summer Autumn Winter Section Chapter Figure Fig Table Appendix
    Volume Vol Part Page Article Note Category File Image List References Internet Web OK TV DVD CD EP LP CEO
    Head BC BCE AD CE AM PM Mr Mrs Ms Dr Sr Jr Day Days Year Years Week Act Scene""",
)
# Offices and forms of address: no part of the person's name that they stand before. CoNLL-2003 leaves them out too.
TITLES = words(
    """Mr Mr. Mrs Mrs. Ms Ms. Miss Mx Dr Dr. Doctor Prof Prof. Professor Sir Dame Lord Lady King Queen Prince Princess
    Duke Duchess Earl Count Countess Baron Baroness Viscount Marquess Marquis Emperor Empress Tsar Tsarina Czar
    Kaiser Sultan Shah Caliph Emir Sheikh Pope Cardinal Archbishop Bishop Abbot Abbess Father Reverend Rev Rev.
    Rabbi Imam Ayatollah President Vice Prime Minister Premier Chancellor Governor Gov. Mayor Senator Sen.
    Congressman Congresswoman Representative Rep. Secretary Speaker Ambassador Justice Judge Attorney General
    Gen Gen. Colonel Col. Major Captain Capt. Lieutenant Lt. Commander Cmdr. Admiral Adm. Sergeant Sgt. Corporal
    Private Marshal Brigadier Commodore Chief Coach Archduke Archduchess Crown Infanta Director Chairman
    Chairwoman Chair CEO Inspector Detective Constable Sheriff Messrs Messrs. Madame Mme Monsieur Herr Frau Don
    Dona Officer Agent Uncle Aunt Grandmother Grandfather Mother Brother Sister""",
)
# Titles that are names when these follow: "General Electric", "Queen Street".
AFTER_TITLE = words(
    """Electric Motors Assembly Mills Foods Dynamics Court Post Street Road Avenue Square Island Islands County City
    Lake River Bay Range Mountain Mountains Hill Hills Park Palace Castle Bridge Station College School Hospital
    University Theatre Theater Church Cathedral Cup League Records Department Office Council Committee House
    Corps Building Airport Stadium Hall Party Penguin Kong Lear Arthur's Land Sound Strait Peninsula Ltd Inc
    Inc. Company Corporation Award Prize Medal Club Series Museum Library Juan Quixote Giovanni Pasquale Carlos
    Superior Teresa Tongue Earth Nature Goose Leagues Motor Staff""",
)
# A first word that owns what follows "of": "University of Oslo", "Battle of Hastings".
OF_HEADS = words(
    """University College Universities School Academy Institute Faculty Department Ministry Office Bureau Bank Board
    Chamber House Church Cathedral Basilica Abbey Museum Library Gallery Palace Castle Tower Bridge Port Gulf
    Bay Strait Straits Sea Isle Isles Island Islands Cape Mount Lake River Valley Kingdom Republic Union
    Commonwealth Federation Confederation State States Province County City Town Borough District Parish Diocese
    Archdiocese Duchy Grand Principality Empire Emirate Sultanate Caliphate Battle Siege Treaty Peace Congress
    Council Convention Conference Declaration Bill Act Statute Edict Concordat Constitution Charter Code
    Articles War Wars Fall Sack Capture Raid Massacre Rape Revolt Reign Age Era Order Knights Legion Society
    Association League Organization Organisation International National Royal Court High Supreme Federal Canon
    Book Books Song Songs Gospel Epistle Acts Lord Master Bachelor Doctor Medal Star Cross Hall Gardens Garden
    Gates Gate Great Tales Chronicles Journal Annals Review Encyclopedia Dictionary History Origin Tour Horn
    Rock Stone Statue Temple Tomb Convent Army Navy Corps Fleet Bishopric See Mandate Crown Dominion Colony
    Territory Autonomous People's Democratic Socialist Soviet Plain Plains Field Fields Dukes Daughters Sons
    Children Prophet Ark Holy Head Heart Joan Lawrence Catherine Eleanor Francis Thomas William Anne Margaret
    Isabella Alexander Philip Leonardo Thales Pythagoras Heraclitus Hero Archimedes Apollonius Clement Gregory
    Basil Augustine Ignatius Teresa Bernard Julian Helen Matilda John Edward Robert Geoffrey Stephen Hugh
    Eusebius Diogenes Zeno Dionysius Isidore Hildegard Guy Raymond Richard Rudolf Otto Frederick Henry Louis
    Charles James George Albert Maria Mary Elizabeth Eugene Bernadette Anselm Cyril Origen Josephus Saint St. St
    Men Man Lady Ladies Games Prince Princess Duke Duchess Earl Marquess Queen King Center Centre Division
    Secretary Director Institutes Hundred Years Grapes Wrath Lords Game Call World Planet Curse Return Rise Dawn
    Day Night Line Wall Wheel Wings Company Companies Bible Sermon Feast Museums Campaign Treaties Protocol
    Tribunal Trial Trials Theory Secret Birth Death Life Kings Heights Cradle Village""",
)
# Of these, the ones that head a name only with a further name in front or in a title: an office otherwise.
OFFICES = words(
    "King Queen Prince Princess Duke Duchess Earl Marquess Lord Lady Master Director Secretary Bachelor Doctor Head"
)
# Before "for", "in", "on", "at", "and": bodies and prizes that are named by their purpose.
PURPOSE_HEADS = words(
    """Centre Center Institute Organization Organisation Society Campaign Committee Council Commission Prize Award
    Awards Medal Foundation Fund Academy Party Movement Conference Convention Department Ministry Board Office
    School Museum College Association Agency Bureau Coalition Alliance Union League Faculty Journal Secretary
    Minister Doctor Professor Doctorate Bachelor Master Masters Trust Division Program Programme Laboratory
    University Star Hall Action Order Federation Confederation Chamber""",
)
PLACE_TAILS = words(
    """Sea Ocean River Lake Bay Gulf Strait Channel Canal Island Islands Isle Isles Mountain Mountains Mount Hill Hills
    Peak Range Valley Desert Forest Plateau Peninsula Cape Coast Beach Falls Creek Glacier Basin Plain Plains
    Delta Point Rock Province County District Region City Town Village Parish Borough Kingdom Empire Republic
    Territory State States Street Road Avenue Square Boulevard Highway Park Gardens Bridge Tower Castle Palace
    Station Airport Stadium Cathedral Church Abbey Temple Mosque Cemetery Memorial Monument Hall House Building
    Prefecture Oblast Heights Harbour Harbor Port Reef Crater Canyon Fort Reservoir Dam Quarter Wall Arena Plaza
    Place Lane Wood Woods Field Ridge Pass Shire Rapids Springs Hotel Africa America Europe Asia Korea Germany
    Ireland Wales Zealand England Guinea Sudan Dakota Carolina Virginia""",
)
PLACE_HEADS = words(
    """Mount Lake Cape Fort Port Gulf Bay Strait Isle Isles Island Republic Costa Sri Hong Puerto Saudi Buenos Rio
    Sierra Papua Burkina Kingdom Duchy River San Santa Los Las El Saint St. New North South East West Northern
    Southern Eastern Western Central Lower Upper Great Greater Little Empire Principality Province Sultanate
    Hall Mt. Mt County City Sea""",
)
BODY_TAILS = words(
    """University College School Academy Institute Society Association Company Corporation Inc Inc. Ltd Ltd. Co. Corp.
    Group Bank Party Union League Council Committee Commission Congress Parliament Senate Assembly Court
    Ministry Department Agency Bureau Board Office Service Army Navy Force Forces Corps Marines Police Guard
    Hospital Museum Library Gallery Theatre Theater Orchestra Choir Band Records Studios Studio Press Times Post
    Journal Gazette Herald Telegraph Tribune Magazine News Club Team United Rovers Wanderers Athletic Bulls
    Bears Lions Yankees Giants Foundation Trust Fund Organization Organisation Federation Alliance Network
    Television Radio Motors Airlines Railways Industries Systems Technologies Software Entertainment Pictures
    Productions Brothers Sons Bros. Movement Front Brigade Regiment Division Battalion Squadron Fleet Order
    Legion Laboratory Laboratories Observatory Center Centre Administration Authority Exchange Cross Greens
    Bundestag Inquisition Dodgers Celtics Lakers Government Opera Ballet Philharmonic Symphony""",
)
BODY_HEADS = words(
    """University College Bank Ministry Department Office Bureau Church House Council Royal Federal National
    International Society Association League Supreme Court Institute Academy Chamber Organization Organisation
    Board School Faculty Real FC Inter AC""",
)
WORK_TAILS = words(
    """War Wars Revolution Rebellion Revolt Crisis Crusade Crusades Restoration Reformation Renaissance Treaty Pact
    Agreement Accord Accords Act Bill Plan Prize Award Awards Medal Cup Games Olympics Championship
    Championships Tournament Trophy Festival Symphony Concerto Sonata Railway Telescope Age Era Dynasty Period
    Day Week Bible Code Constitution Amendment Doctrine Declaration Conference Convention Uprising Massacre
    Campaign Offensive Operation Mission Missile Express Depression Show Song Songs Suite Book Story Stories
    Test Scale Law Theorem Effect""",
)
WORK_HEADS = words(
    """Battle Siege Treaty Peace Council Congress Operation Tour HMS USS SS RMS Nobel World Grand Second First Third
    Fourth Fifth Book Gospel Act Edict Fall Sack Canon Symphony Project Apollo Windows Boeing Airbus Expo""",
)
NATIONS = words(
    """American British English Scottish Welsh Irish French German Italian Spanish Portuguese Dutch Belgian Swiss
    Austrian Danish Swedish Norwegian Finnish Icelandic Polish Czech Slovak Slovakian Hungarian Romanian
    Bulgarian Serbian Serb Serbs Croatian Croat Bosnian Slovene Slovenian Albanian Macedonian Greek Turkish
    Cypriot Maltese Russian Ukrainian Belarusian Lithuanian Latvian Estonian Georgian Armenian Azerbaijani
    Kazakh Uzbek Turkmen Kyrgyz Tajik Mongol Mongolian Chinese Japanese Korean Vietnamese Thai Lao Cambodian
    Khmer Burmese Malay Malaysian Indonesian Javanese Filipino Singaporean Indian Pakistani Bengali Bangladeshi
    Nepalese Nepali Tibetan Sinhalese Tamil Hindi Urdu Punjabi Sanskrit Afghan Iranian Persian Iraqi Kurdish
    Kurd Kurds Syrian Lebanese Israeli Palestinian Jordanian Saudi Yemeni Omani Emirati Kuwaiti Egyptian Libyan
    Tunisian Algerian Moroccan Sudanese Ethiopian Eritrean Somali Kenyan Ugandan Tanzanian Rwandan Congolese
    Nigerian Ghanaian Senegalese Malian Ivorian Liberian Cameroonian Angolan Zambian Zimbabwean Mozambican
    Namibian African Afrikaans Zulu Xhosa Swahili Yoruba Igbo Hausa Berber Australian Zealander Maori Samoan
    Tongan Fijian Hawaiian Canadian Mexican Cuban Jamaican Haitian Dominican Guatemalan Honduran Nicaraguan
    Panamanian Colombian Venezuelan Ecuadorian Peruvian Bolivian Chilean Argentine Argentinian Uruguayan
    Paraguayan Brazilian Aztec Maya Mayan Inca Incan Roman Romans Byzantine Ottoman Ottomans Latin Hebrew
    Aramaic Arabic Arab Arabs Arabian Jewish Jew Jews Christian Christians Christianity Catholic Catholics
    Protestant Protestants Lutheran Calvinist Anglican Methodist Baptist Quaker Orthodox Muslim Muslims Islam
    Islamic Sunni Shia Hindu Hindus Hinduism Buddhist Buddhists Buddhism Sikh Jain Judaism Celtic Germanic
    Slavic Nordic Norse Viking Vikings Saxon Saxons Norman Normans Frankish Franks Gothic Goths Vandals Bavarian
    Prussian Bohemian Flemish Walloon Catalan Basque Galician Breton Gaelic Sicilian Venetian Florentine Genoese
    Corsican Cossack Crimean Soviet Soviets Asian Asians European Europeans Africans Americans Germans Italians
    Russians Greeks Turks Poles Danes Swedes Norwegians Finns Spaniards Mexicans Canadians Australians Britons
    Scots Egyptians Persians Mongols Indians Hungarians Czechs Bulgarians Serbians Austrians Belgians Brazilians
    Cubans Victorian Edwardian Elizabethan Hellenistic Mediterranean Balkan Baltic Caribbean Scandinavian
    Iberian Lakota Sioux Cherokee Navajo Apache Iroquois Mohawk Inuit Nazi Nazis Communist Marxist Republican
    Democrat Democrats Republicans Tory Whig Parisian Londoner Ming Qing Han Tang Qin Song Yuan Tokugawa Meiji
    Edo Mughal Safavid Abbasid Umayyad Fatimid Habsburg Tudor Stuart Hanoverian Bourbon Carolingian Merovingian
    Ptolemaic Seleucid Yiddish Esperanto Phoenician Sumerian Babylonian Assyrian Hittite Etruscan Carthaginian
    Spartan Athenian Trojan""",
)
PLACES = words(
    """Afghanistan Albania Algeria Angola Argentina Armenia Australia Austria Azerbaijan Bahrain Bangladesh Belarus
    Belgium Belize Benin Bhutan Bolivia Bosnia Botswana Brazil Brunei Bulgaria Burma Burundi Cambodia Cameroon
    Canada Chad Chile China Colombia Congo Croatia Cuba Cyprus Denmark Ecuador Egypt England Eritrea Estonia
    Ethiopia Fiji Finland France Gabon Gambia Georgia Germany Ghana Greece Greenland Guatemala Guinea Guyana
    Haiti Honduras Hungary Iceland India Indonesia Iran Iraq Ireland Israel Italy Jamaica Japan Jordan
    Kazakhstan Kenya Korea Kosovo Kuwait Kyrgyzstan Laos Latvia Lebanon Liberia Libya Lithuania Luxembourg
    Macedonia Madagascar Malawi Malaysia Mali Malta Mauritania Mauritius Mexico Moldova Monaco Mongolia
    Montenegro Morocco Mozambique Myanmar Namibia Nepal Netherlands Nicaragua Niger Nigeria Norway Oman Pakistan
    Palestine Panama Paraguay Peru Philippines Poland Portugal Prussia Qatar Romania Russia Rwanda Samoa
    Scotland Senegal Serbia Singapore Slovakia Slovenia Somalia Spain Sudan Suriname Sweden Switzerland Syria
    Taiwan Tajikistan Tanzania Thailand Tibet Togo Tunisia Turkey Turkmenistan Uganda Ukraine Uruguay Uzbekistan
    Venezuela Vietnam Wales Yemen Yugoslavia Zambia Zimbabwe Africa America Asia Europe Antarctica Oceania
    Alabama Alaska Arizona Arkansas California Colorado Connecticut Delaware Florida Hawaii Idaho Illinois
    Indiana Iowa Kansas Kentucky Louisiana Maine Maryland Massachusetts Michigan Minnesota Mississippi Missouri
    Montana Nebraska Nevada Ohio Oklahoma Oregon Pennsylvania Tennessee Texas Utah Vermont Virginia Wisconsin
    Wyoming Ontario Quebec Alberta Manitoba Queensland Victoria Tasmania Bavaria Saxony Bohemia Silesia Galicia
    Catalonia Andalusia Brittany Normandy Burgundy Provence Lombardy Tuscany Sicily Sardinia Corsica Crete
    Crimea Siberia Manchuria Kashmir Punjab Bengal London Paris Berlin Rome Madrid Lisbon Vienna Prague Budapest
    Warsaw Moscow Kiev Athens Istanbul Constantinople Jerusalem Cairo Alexandria Baghdad Damascus Tehran Delhi
    Mumbai Bombay Calcutta Beijing Shanghai Tokyo Kyoto Osaka Seoul Sydney Melbourne Toronto Montreal Vancouver
    Chicago Boston Philadelphia Washington Houston Dallas Seattle Detroit Atlanta Miami Cambridge Oxford
    Edinburgh Glasgow Manchester Liverpool Birmingham Leeds Bristol York Dublin Belfast Amsterdam Rotterdam
    Brussels Antwerp Geneva Stockholm Oslo Copenhagen Helsinki Milan Venice Florence Naples Turin Genoa
    Barcelona Seville Munich Hamburg Frankfurt Cologne Leipzig Dresden Danube Rhine Thames Nile Amazon Volga
    Ganges Alps Andes Himalayas Pyrenees Balkans Atlantic Pacific Mediterranean Earth Mars Jupiter Saturn Venus
    Moon UK US USA U.S. U.K. USSR UAE Arabia Babylon Carthage Sparta Troy Persia Mesopotamia Byzantium Gaul
    Britannia Judea Anatolia Scandinavia Nubia Flanders Brooklyn Manhattan Hollywood Bronx Queens Ulster
    Cornwall Kent Essex Sussex Yorkshire""",
)
GIVEN = words(
    """Aaron Abraham Ada Adam Adolf Agnes Alan Albert Alberto Alexander Alexandra Alexei Alfred Ali Alice Amelia Andrea
    Andrew Andre Angela Ann Anna Anne Anthony Anton Antonio Arnold Arthur August Barbara Benjamin Bernard Bertha
    Betty Bill Bob Boris Brian Bruce Carl Carlos Caroline Catherine Charles Charlotte Christian Christine
    Christopher Clara Claude Daniel David Deborah Denis Dennis Diana Diego Dmitri Donald Dorothy Douglas Eduard
    Edgar Edmund Edward Edwin Eleanor Elena Elizabeth Ella Emily Emma Enrico Eric Erich Ernest Ernst Eugene Eva
    Evelyn Felix Ferdinand Fidel Florence Frances Francis Francisco Frank Franklin Franz Fred Frederick
    Friedrich Fritz Gabriel Galileo Gary Geoffrey Georg George Gerald Gerhard Giovanni Giuseppe Grace Gregory
    Gustav Guy Hannah Hans Harold Harriet Harry Heinrich Helen Helena Henri Henry Herbert Hermann Howard Hugh
    Hugo Ian Ibn Igor Irene Isaac Isabella Ivan Jack Jackson Jacob Jacques James Jan Jane Janet Jason Jawaharlal
    Jean Jeanne Jennifer Jim Joan Joe Johann Johannes John Jonathan Jorge Jose Josef Joseph Juan Judith Jules
    Julia Julian Julius Karen Karl Kate Katherine Keith Kenneth Kevin Kurt Lars Laura Lawrence Leo Leon Leonard
    Leonardo Lewis Linda Lionel Lorenzo Louis Louise Lucy Ludwig Luigi Luis Luke Marco Marcus Margaret Maria
    Marie Mario Mark Martha Martin Mary Matthew Maurice Max Michael Michel Miguel Mikhail Mohammed Muhammad
    Nadia Nancy Napoleon Nathan Neil Nelson Nicholas Nicolas Niels Nikolai Nina Oliver Olga Oscar Otto Pablo
    Patricia Patrick Paul Paulo Pedro Peter Philip Pierre Plato Rachel Ralph Raymond Rebecca Richard Robert
    Roger Roland Ronald Rosa Rose Roy Rudolf Russell Ruth Sam Samuel Sarah Scott Sebastian Sergei Simon Sophia
    Stanley Stefan Stephen Steve Steven Susan Theodore Theresa Thomas Tim Timothy Tom Tony Ursula Victor Vincent
    Virginia Vladimir Walter Werner Wilhelm William Winston Wolfgang Yuri Zheng""",
)
EPITHETS = words(
    """Great Elder Younger Conqueror Terrible Bald Bold Wise Baptist Lionheart Good Fat Magnificent Fair Short Hammer
    Confessor Impaler Pious Simple Lame Evangelist Apostle Bear Pooh Builder Kid Cruel Bad Fearless Red Catholic
    Lion Navigator Venerable Divine Unready Victorious Peaceful Stammerer Dane Bruce Greek Ripper Invincible
    Silent Sun Fowler""",
)
PARTICLES = words(
    """de del della di da do dos das du des la le las los el van der den von zu zur bin ibn ben y e te ter ten af av
    und et""",
)
# A number of up to three digits belongs to the name: "Apollo 11", "Radio 4".
NUMBERED = words(
    """Apollo Radio Channel Boeing Airbus Formula Windows Route Highway Interstate Class Voyager Explorer Mariner
    Sputnik Soyuz Gemini Pioneer Luna Studio Number Agenda Area Group Catch Fahrenheit Symphony Super Mark Type
    Expo Stalag Gate Kepler Nintendo PlayStation Xbox Flight Squadron""",
)
PAIRS = (
    "Trinidad and Tobago",
    "Bosnia and Herzegovina",
    "Antigua and Barbuda",
    "Saint Kitts and Nevis",
    "Romeo and Juliet",
)
ORDINARY = frozenset(files(__package__).joinpath("openers.txt").read_text("ascii").split())
